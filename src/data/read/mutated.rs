//! For property tests: damaged copies of a file, the same ones in every run.

/// What files break on: separators, quotation marks, brackets, numbers out of range, halves of characters.
const FRAGMENTS: &[&[u8]] = &[
    b"\t",
    b"\n",
    b"\r\n",
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b" ",
    b"\0",
    b"-",
    b"-1",
    b"1e400",
    b"9223372036854775808",
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"\xff",
    b"\xf0\x9f\x98",
    "\u{1f600}".as_bytes(),
    b"\xef\xbb\xbf",
    b"\\ud800",
    b"|||",
    b"(",
    b")",
    b"*",
    b"O",
    b"[MASK]",
];

/// The numbered copy of `sample`, with one to four changes.
pub fn mutated(sample: &[u8], number: u64) -> Vec<u8> {
    let mut state = number;
    // SplitMix64.
    let mut below = |bound: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    };
    let mut bytes = sample.to_vec();
    for _ in 0..1 + below(4) {
        let at = below(bytes.len() + 1);
        let end = (at + below(12)).min(bytes.len());
        match below(6) {
            0 => drop(bytes.drain(at..end)),
            1 => bytes.truncate(at),
            2 => drop(bytes.splice(at..end, FRAGMENTS[below(FRAGMENTS.len())].iter().copied())),
            3 => drop(bytes.splice(at..at, FRAGMENTS[below(FRAGMENTS.len())].iter().copied())),
            4 => {
                let copied = bytes[at..end].to_vec();
                let to = below(bytes.len() + 1);
                drop(bytes.splice(to..to, copied));
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << below(8);
                }
            }
        }
    }
    bytes
}
