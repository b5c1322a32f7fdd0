//! Cuts the arena: every buffer of a run is an offset decided here, before the run.

use crate::backend::{ARENA, DType, View};

/// Alignment of every buffer: a multiple of what any vector or tensor-core access asks for.
pub(super) const ALIGNMENT: usize = 256;

/// A named part of the memory plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    pub name: &'static str,
    pub bytes: usize,
    /// Where the bytes come from, in symbols and numbers.
    pub formula: String,
    /// What they are for, where that is more than one thing.
    pub parts: Vec<(&'static str, usize)>,
}

#[derive(Default)]
pub struct Layout {
    cursor: usize,
    regions: Vec<Region>,
    /// Of the region that is being cut.
    parts: Vec<(&'static str, usize)>,
}

impl Layout {
    /// Behind what is laid out already.
    pub fn starting_at(bytes: usize) -> Layout {
        Layout { cursor: bytes.next_multiple_of(ALIGNMENT), ..Layout::default() }
    }

    /// Everything that `cut` takes is one region.
    pub fn region<R>(&mut self, name: &'static str, formula: String, cut: impl FnOnce(&mut Layout) -> R) -> R {
        let start = self.cursor;
        let result = cut(self);
        self.regions.push(Region { name, bytes: self.cursor - start, formula, parts: std::mem::take(&mut self.parts) });
        result
    }

    /// What `cut` takes belongs to a part of the region.
    pub fn part<R>(&mut self, name: &'static str, cut: impl FnOnce(&mut Layout) -> R) -> R {
        let start = self.cursor;
        let result = cut(self);
        let bytes = self.cursor - start;
        match self.parts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += bytes,
            None => self.parts.push((name, bytes)),
        }
        result
    }

    /// A buffer of `rows` x `cols`.
    pub fn matrix(&mut self, rows: usize, cols: usize, dtype: DType) -> View {
        let view = View { buffer: ARENA, offset: self.cursor, rows, cols, stride: cols, dtype };
        self.cursor = view.end().max(self.cursor).next_multiple_of(ALIGNMENT);
        view
    }

    pub fn vector(&mut self, count: usize, dtype: DType) -> View {
        self.matrix(1, count, dtype)
    }

    /// Two sets of buffers that are never in use at the same time share their memory.
    pub fn either<A, B>(&mut self, first: impl FnOnce(&mut Layout) -> A, second: impl FnOnce(&mut Layout) -> B) -> (A, B) {
        let start = self.cursor;
        let a = first(self);
        let end = std::mem::replace(&mut self.cursor, start);
        let b = second(self);
        self.cursor = self.cursor.max(end);
        (a, b)
    }

    /// Sets of buffers of which one is in use at a time share their memory.
    pub fn one_of<T, R>(&mut self, items: &[T], mut cut: impl FnMut(&mut Layout, &T) -> R) -> Vec<R> {
        let (start, mut end) = (self.cursor, self.cursor);
        let sets = items.iter().map(|item| {
            self.cursor = start;
            let set = cut(self, item);
            end = end.max(self.cursor);
            set
        });
        let sets = sets.collect();
        self.cursor = end;
        sets
    }

    pub fn finish(self) -> (usize, Vec<Region>) {
        (self.cursor, self.regions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_do_not_overlap() {
        let mut layout = Layout::default();
        let (a, b) = layout.region("both", String::new(), |layout| (layout.matrix(3, 5, DType::F32), layout.vector(7, DType::F16)));
        assert_eq!((a.offset, a.end(), b.offset), (0, 60, 256));
        let (c, d) = layout.either(|layout| layout.vector(1000, DType::F32), |layout| layout.vector(10, DType::F32));
        assert_eq!((c.offset, d.offset), (512, 512));
        let sets = layout.one_of(&[10, 300], |layout, &count| layout.vector(count, DType::F32));
        assert_eq!(sets.iter().map(|set| set.offset).collect::<Vec<_>>(), [4608, 4608]);
        let (total, regions) = layout.finish();
        assert_eq!(total, 512 + 4096 + 1280);
        assert_eq!(regions, [Region { name: "both", bytes: 512, formula: String::new(), parts: Vec::new() }]);
    }

    #[test]
    fn parts_of_a_name_add_up() {
        let mut layout = Layout::default();
        layout.region("all", String::new(), |layout| {
            for (name, count) in [("a", 1), ("b", 65), ("a", 100)] {
                layout.part(name, |layout| layout.vector(count, DType::F32));
            }
        });
        layout.region("rest", String::new(), |layout| layout.vector(1, DType::F32));
        let (_, regions) = layout.finish();
        assert_eq!((&regions[0].parts, regions[1].parts.len()), (&vec![("a", 256 + 512), ("b", 512)], 0));
    }
}
