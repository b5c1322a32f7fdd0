//! A kernel's arguments: values side by side and a pointer to each, as a launch takes them. Order and types are those
//! of the kernel's signature; nothing is allocated.

use super::driver::Address;
use crate::backend::{ARENA, DType, Dropout, HOST, PROBABILITY_COLUMNS, ROW_COLUMNS, Rows, View};
use std::ffi::c_void;

/// More than the longest signature has.
const MOST: usize = 64;

/// The memory that views point into.
#[derive(Clone, Copy, Default)]
pub struct Arena {
    pub start: Address,
    pub bytes: usize,
    /// Host memory, where the device reaches it.
    pub host_start: Address,
    pub host_bytes: usize,
}

impl Arena {
    /// Address of a view's first element.
    pub fn address(&self, view: View) -> Address {
        assert!(view.buffer == ARENA || view.buffer == HOST, "a device reads no files of the host");
        let (start, bytes) = if view.buffer == HOST { (self.host_start, self.host_bytes) } else { (self.start, self.bytes) };
        assert!(view.end() <= bytes, "a view ends at byte {} of memory of {bytes}", view.end());
        start + view.offset as u64
    }
}

/// Values in the order of a kernel's signature.
#[derive(Clone)]
pub struct Arguments {
    arena: Arena,
    /// Each value in the low bytes of its own word, and how many bytes it has.
    words: [u64; MOST],
    bytes: [u8; MOST],
    pointers: [*mut c_void; MOST],
    count: usize,
}

// SAFETY: the pointers are made anew for each launch, by `pointers`.
unsafe impl Send for Arguments {}

impl Arguments {
    pub fn new(arena: Arena) -> Arguments {
        Arguments { arena, words: [0; MOST], bytes: [0; MOST], pointers: [std::ptr::null_mut(); MOST], count: 0 }
    }

    fn push(mut self, word: u64, bytes: u8) -> Arguments {
        (self.words[self.count], self.bytes[self.count]) = (word, bytes);
        self.count += 1;
        self
    }

    /// int.
    pub fn int(self, value: usize) -> Arguments {
        assert!(i32::try_from(value).is_ok(), "{value} is more than a kernel counts");
        self.push(value as u64, 4)
    }

    /// int64_t.
    pub fn long(self, value: usize) -> Arguments {
        self.push(value as u64, 8)
    }

    /// uint32_t.
    pub fn word(self, value: u32) -> Arguments {
        self.push(u64::from(value), 4)
    }

    pub fn float(self, value: f64) -> Arguments {
        self.push(u64::from((value as f32).to_bits()), 4)
    }

    /// A pointer to elements of a type.
    pub fn vector(self, dtype: DType, view: View) -> Arguments {
        assert_eq!(view.dtype, dtype, "element type of a view");
        let address = self.arena.address(view);
        self.push(address, 8)
    }

    /// A pointer, and the elements from row to row.
    pub fn matrix(self, dtype: DType, view: View) -> Arguments {
        self.vector(dtype, view).int(view.stride)
    }

    pub fn optional_vector(self, dtype: DType, view: Option<View>) -> Arguments {
        match view {
            Some(view) => self.vector(dtype, view),
            None => self.push(0, 8),
        }
    }

    pub fn optional_matrix(self, dtype: DType, view: Option<View>) -> Arguments {
        match view {
            Some(view) => self.matrix(dtype, view),
            None => self.push(0, 8).int(0),
        }
    }

    /// A mask of hidden states or a prefix: key0, key1, threshold, scale. A threshold of 0 keeps everything.
    pub fn dropout(self, dropout: Option<Dropout>) -> Arguments {
        self.mask(ROW_COLUMNS, dropout)
    }

    /// The same of attention's probabilities.
    pub fn probability_dropout(self, dropout: Option<Dropout>) -> Arguments {
        self.mask(PROBABILITY_COLUMNS, dropout)
    }

    fn mask(self, columns: usize, dropout: Option<Dropout>) -> Arguments {
        let none = Dropout { key: [0; 2], threshold: 0, scale: 1.0, columns };
        let Dropout { key: [key0, key1], threshold, scale, columns: of_draw } = dropout.unwrap_or(none);
        assert_eq!(of_draw, columns, "columns that a draw decides");
        self.word(key0).word(key1).word(threshold).float(scale)
    }

    /// A mask, and the ordinals and tokens that it is drawn by.
    pub fn dropout_rows(self, dropout: Option<(Dropout, &Rows)>) -> Arguments {
        let rows = dropout.map(|(_, rows)| rows);
        self.dropout(dropout.map(|(dropout, _)| dropout))
            .optional_vector(DType::I32, rows.map(|rows| rows.ordinals))
            .optional_vector(DType::I32, rows.map(|rows| rows.tokens))
    }

    /// Bytes of each value.
    pub fn sizes(&self) -> &[u8] {
        &self.bytes[..self.count]
    }

    /// What a launch takes: a pointer to each value, good while `self` stays where it is.
    pub fn pointers(&mut self) -> &mut [*mut c_void] {
        for (pointer, word) in self.pointers.iter_mut().zip(&mut self.words[..self.count]) {
            *pointer = std::ptr::from_mut(word).cast();
        }
        &mut self.pointers[..self.count]
    }
}
