//! Inputs of several parts.

/// How long a piece is, before it: u16, little endian.
const LENGTH_LEN: usize = size_of::<u16>();

/// The pieces of an input. The last one may be shorter than it says.
pub(crate) struct Pieces<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<LENGTH_LEN>()?;
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        self.0 = rest;
        Some(piece)
    }
}

/// An input that has these pieces.
pub(crate) fn join<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut input = Vec::new();
    for piece in pieces {
        let length = u16::try_from(piece.len()).expect("seeds are shorter than 64 KiB");
        input.extend_from_slice(&length.to_le_bytes());
        input.extend_from_slice(piece);
    }
    input
}
