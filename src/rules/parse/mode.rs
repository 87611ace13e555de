//! Modes of device nodes.

/// The mode of a node that no rule gives one.
const DEFAULT_MODE: u32 = 0o660;
/// All that a mode can be.
pub(super) const LARGEST_MODE: u32 = 0o7777;

/// As chmod(1) takes it, on top of the default mode, with no umask. The error
/// is the offset of what it does not take.
pub(super) fn symbolic_mode(text: &[u8]) -> Result<u32, usize> {
    let mut mode = DEFAULT_MODE;
    let mut at = 0;
    loop {
        let mut who = 0;
        while let Some(&byte) = text.get(at) {
            who |= match byte {
                b'u' => 0o4700,
                b'g' => 0o2070,
                b'o' => 0o1007,
                b'a' => 0o7777,
                _ => break,
            };
            at += 1;
        }
        let who = if who == 0 { LARGEST_MODE } else { who };
        if !matches!(text.get(at), Some(b'+' | b'-' | b'=')) {
            return Err(at);
        }
        while let Some(&operator @ (b'+' | b'-' | b'=')) = text.get(at) {
            at += 1;
            let before = mode;
            let mut bits = 0;
            while let Some(&byte) = text.get(at) {
                bits |= match byte {
                    b'r' => 0o444,
                    b'w' => 0o222,
                    b'x' => 0o111,
                    b'X' if before & 0o111 != 0 => 0o111,
                    b'X' => 0,
                    b's' => 0o6000,
                    b't' => 0o1000,
                    b'u' => (before >> 6 & 7) * 0o111,
                    b'g' => (before >> 3 & 7) * 0o111,
                    b'o' => (before & 7) * 0o111,
                    _ => break,
                };
                at += 1;
            }
            // The sticky bit is of everyone.
            let who = if bits & 0o1000 == 0 { who } else { who | 0o1000 };
            mode = match operator {
                b'+' => mode | bits & who,
                b'-' => mode & !(bits & who),
                _ => mode & !who | bits & who,
            };
        }
        match text.get(at) {
            None => return Ok(mode),
            Some(b',') => at += 1,
            Some(_) => return Err(at),
        }
    }
}
