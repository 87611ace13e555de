//! Storms of events, most of which are lost: in the end what was acted on is what
//! there is, every time.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use rustix::process::Signal;

use crate::harness::ns;
use crate::listen::have;

use super::world::{Belief, World};

/// What storms are made of: PLUGD_TEST_SEEDS of them, or as many as `default`, from
/// PLUGD_TEST_FIRST_SEED or 0 on.
pub(super) fn seeds(default: u64) -> Range<u64> {
    let number = |name: &str, default| {
        std::env::var(name).map_or(default, |text| {
            text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}"))
        })
    };
    let first = number("PLUGD_TEST_FIRST_SEED", 0);
    first..first + number("PLUGD_TEST_SEEDS", default)
}

/// A storm while plugd is held back now and then, so that events are lost.
fn storm(world: &mut World, mut hold: impl FnMut(bool)) {
    for _ in 0..1 + world.random(4) {
        let held = world.random(3) > 0;
        hold(held);
        for _ in 0..world.random(40) {
            world.happen();
        }
        hold(false);
    }
}

#[test]
fn after_every_storm_the_state_is_exact() {
    // Many storms for each plugd, and each of them with another past.
    const EACH: u64 = 50;
    ns::inside(|| {
        let seeds = seeds(1000);
        for first in seeds.clone().step_by(usize::try_from(EACH).unwrap()) {
            let numbered = first % 150 != 0;
            let mut world = if numbered { World::numbered(first) } else { World::new(first) };
            let mut belief = Belief::default();
            let coldplug = if first % 100 == 0 { &["--coldplug"][..] } else { &[] };
            let options = ["--receive-buffer-size", "4K", "--state", "none"];
            // Then a device that was replaced has to be told from one that was not.
            world.thrifty = first % 100 == 50;
            world.renamed = first % 200 == 100;
            world.mixed = first % 300 >= 150;
            belief.without_changes = first % 200 == 50;
            let changes = if belief.without_changes { "no" } else { "yes" };
            let options = [&options[..], &["--replay-change", changes]].concat();
            let daemon = world.plugd(&options).args(coldplug).start();
            for seed in first..(first + EACH).min(seeds.end) {
                world.confusing = seed % 3 == 0;
                storm(&mut world, |held| {
                    daemon.signal(if held { Signal::STOP } else { Signal::CONT });
                });
                World::settle("plugd");
                belief.check(&world, &format!("storm {seed}"));
            }
        }
    });
}

/// Worlds of several kinds, each for some of the seeds.
fn worlds(seeds: Range<u64>, mut test: impl FnMut(World, Range<u64>)) {
    const EACH: u64 = 50;
    for first in seeds.clone().step_by(usize::try_from(EACH).unwrap()) {
        let mut world = World::numbered(first);
        world.renamed = first % 100 == 50;
        world.mixed = first % 200 < 100;
        test(world, first..(first + EACH).min(seeds.end));
    }
}

#[test]
fn killed_at_any_moment_nothing_is_missed_after_a_restart() {
    ns::inside(|| {
        worlds(seeds(200), |mut world, kills| {
            let mut belief = Belief::default();
            let state = world.at("state");
            for kill in kills {
                let size = if kill % 2 == 0 { "4K" } else { "1M" };
                let options = ["--receive-buffer-size", size, "--state", state.to_str().unwrap()];
                let daemon = world.plugd(&options).start();
                world.confusing = kill % 4 < 2;
                world.thrifty = kill % 3 == 0;
                // Sometimes it is killed in the middle of its start.
                if world.random(2) > 0 {
                    World::settle("plugd");
                    belief.check(&world, &format!("before kill {kill}"));
                }
                for _ in 0..world.random(60) {
                    world.happen();
                }
                daemon.signal(Signal::KILL);
                drop(daemon);
                world.cut();
                for _ in 0..world.random(20) {
                    world.happen();
                }
            }
            let options = ["--state", state.to_str().unwrap()];
            let _daemon = world.plugd(&options).start();
            World::settle("plugd");
            belief.check(&world, "after the last kill");
        });
    });
}

#[test]
fn after_every_storm_there_are_the_nodes_of_what_is_there() {
    const EACH: u64 = 20;
    ns::inside_as_root_apart(|| {
        let seeds = seeds(200);
        for first in seeds.clone().step_by(usize::try_from(EACH).unwrap()) {
            let numbered = first % 60 != 0;
            let mut world = if numbered { World::numbered(first) } else { World::new(first) };
            let coldplug = if first % 40 == 0 { &["--coldplug"][..] } else { &[] };
            let options = ["--receive-buffer-size", "4K", "--state", "none"];
            world.thrifty = first % 100 >= 60;
            world.renamed = first % 100 <= 20;
            world.mixed = first % 40 == 0;
            let daemon = world.plugd_with_nodes(&options).args(coldplug).start();
            for seed in first..(first + EACH).min(seeds.end) {
                world.confusing = seed % 3 == 0;
                storm(&mut world, |held| {
                    daemon.signal(if held { Signal::STOP } else { Signal::CONT });
                });
                World::settle("plugd");
                world.check_nodes(&format!("storm {seed}"));
            }
        }
    });
}

#[test]
fn killed_at_any_moment_the_nodes_are_right_after_a_restart() {
    ns::inside_as_root_apart(|| {
        worlds(seeds(200), |mut world, kills| {
            let state = world.at("state");
            let options = ["--receive-buffer-size", "4K", "--state", state.to_str().unwrap()];
            for kill in kills {
                let daemon = world.plugd_with_nodes(&options).start();
                world.confusing = kill % 4 < 2;
                world.thrifty = kill % 3 == 0;
                // Sometimes it is killed in the middle of its start.
                if world.random(2) > 0 {
                    World::settle("plugd");
                    world.check_nodes(&format!("before kill {kill}"));
                }
                for _ in 0..world.random(60) {
                    world.happen();
                }
                daemon.signal(Signal::KILL);
                drop(daemon);
                for _ in 0..world.random(20) {
                    world.happen();
                }
            }
            let _daemon = world.plugd_with_nodes(&options).start();
            World::settle("plugd");
            world.check_nodes("after the last kill");
        });
    });
}

/// At each system call that leaves something behind.
#[test]
fn killed_at_a_system_call_nothing_is_left_of_it_after_a_restart() {
    const CALLS: [&str; 5] = ["mkdirat", "mknodat", "fchownat", "symlinkat", "renameat"];
    ns::inside_as_root_apart(|| {
        if !have("killed at a system call", "strace") {
            return;
        }
        let calls = CALLS.into_iter().flat_map(|call| [(call, 1), (call, 2)]);
        for (call, count) in calls.chain([("fallocate", 1), ("fallocate", 2)]) {
            // So many that the state file grows.
            let devices = if call == "fallocate" { 100 } else { 16 };
            let mut world = World::numbered(count);
            let state = world.at("state");
            let options = ["--state", state.to_str().unwrap()];
            let plugd = world.plugd_killed_at(call, count, &options);
            // Some names are taken.
            let taken: Vec<_> =
                (1..=16).step_by(2).map(|name| world.at("dev").join(format!("d{name}"))).collect();
            taken.iter().for_each(|path| symlink("nowhere", path).unwrap());
            (1..=devices).for_each(|minor| world.add(&format!("/devices/x{minor}"), minor));
            let status = plugd.launch().wait_exit();
            assert_eq!(status.signal(), Some(libc::SIGKILL), "{call} {count}");
            if call == "fallocate" {
                // Nor is it longer than what it has space for.
                let file = fs::metadata(&state).unwrap();
                assert!(file.len() <= 512 * file.blocks(), "{file:?}");
                assert_eq!(file.len() > 0, count > 1);
            }
            let was_taken =
                |path: &&PathBuf| fs::read_link(path).is_ok_and(|to| to.as_os_str() == "nowhere");
            taken.iter().filter(was_taken).for_each(|path| fs::remove_file(path).unwrap());
            (0..20).for_each(|_| world.happen());
            let _daemon = world.plugd_with_nodes(&options).start();
            World::settle("plugd");
            world.check_nodes(&format!("killed at {call} {count}"));
            let left = fs::read_dir(world.at("")).unwrap();
            let left: BTreeSet<_> = left.map(|entry| entry.unwrap().file_name()).collect();
            let expected = ["acted", "dev", "made", "rules", "state", "sys"];
            assert_eq!(left, expected.map(Into::into).into(), "{call} {count}");
        }
    });
}

#[test]
fn updated_at_any_moment_nothing_is_missed() {
    ns::inside(|| {
        worlds(seeds(200), |mut world, seeds| {
            let mut belief = Belief::default();
            let options = ["-v", "--coldplug", "--receive-buffer-size", "4K", "--state", "none"];
            let daemon = world.plugd(&options).start();
            World::settle("plugd");
            for (count, seed) in (1..).zip(seeds) {
                world.confusing = seed % 3 == 0;
                world.thrifty = seed % 4 == 0;
                daemon.signal(Signal::STOP);
                for _ in 0..world.random(60) {
                    world.happen();
                }
                // It takes some time to be ready for it, which is when more happens.
                daemon.signal(Signal::USR2);
                daemon.signal(Signal::CONT);
                while daemon.logged("updated from version").len() < count {
                    world.happen();
                }
                World::settle("plugd");
                belief.check(&world, &format!("update {seed}"));
            }
        });
    });
}
