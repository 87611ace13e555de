//! For the benches that make device nodes: what becomes of /dev, and what a process
//! has cost.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use crate::common::Outcome;

/// Least, median and most.
pub(crate) fn spread(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[0], values[values.len() / 2], values[values.len() - 1])
}

/// What is below a directory: of each file its path, and what `ls -l` says.
pub(crate) fn tree(root: &Path) -> Outcome<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            if meta.is_dir() {
                directories.push(path.clone());
            }
            let target = fs::read_link(&path).unwrap_or_default();
            let (mode, owner, group) = (meta.mode(), meta.uid(), meta.gid());
            let what = format!("{mode:o} {owner}:{group} {:x} {target:?}", meta.rdev());
            files.insert(path, what);
        }
    }
    Ok(files)
}

/// The processor time that all threads of a process have used, also of one that has
/// ended, as long as nobody has waited for it.
pub(crate) fn time(pid: u32) -> Outcome<Duration> {
    Ok(clock_getcpuclockid(Pid::from_raw(pid.try_into()?))?.now()?.into())
}

/// Whether it does something, and not sleep.
pub(crate) fn is_running(pid: u32) -> Outcome<bool> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(!stat.rsplit(')').next().unwrap_or_default().starts_with(" S"))
}
