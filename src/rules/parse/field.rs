//! Parts of a line, and the blanks between them.

/// Part of a line.
#[derive(Clone, Copy)]
pub(super) struct Field<'l> {
    /// Where in the line it begins.
    pub(super) at: usize,
    pub(super) text: &'l [u8],
}

impl<'l> Field<'l> {
    pub(super) fn skip(self, count: usize) -> Self {
        Self { at: self.at + count, text: &self.text[count..] }
    }

    pub(super) fn split_at(self, index: usize) -> (Self, Self) {
        (Self { at: self.at, text: &self.text[..index] }, self.skip(index))
    }

    /// Where in it this byte is, for the first time.
    pub(super) fn find(self, byte: u8) -> Option<usize> {
        self.text.iter().position(|&b| b == byte)
    }

    /// Where in the line it ends.
    pub(super) fn end(self) -> usize {
        self.at + self.text.len()
    }
}

pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}
