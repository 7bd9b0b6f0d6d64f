//! How an upload is cut into slots: the same on every server.

use std::ops::Range;

const MIB: u64 = 1 << 20;

/// The longest body that becomes a part as it is, in [slots](Limits::slot).
const LARGEST_BODY: u64 = 8;

/// The most parts of a multipart upload, in all engines.
pub(super) const MAX_PARTS: u64 = 10_000;

/// The limits of multipart uploads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Fewest bytes of a part other than the last, most bytes of a part, most parts. Default: as in
    /// Amazon S3.
    pub(super) min_part: u64,
    pub(super) max_part: u64,
    pub(super) max_parts: u64,
    /// Bytes of a slot if the chunk size of the client cannot be used.
    pub(super) slot: u64,
    /// Larger slots are multiples of this.
    pub(super) unit: u64,
    /// Most bytes of an object.
    pub(super) max_object: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            min_part: 5 * MIB,
            max_part: 5 << 30,
            max_parts: MAX_PARTS,
            slot: 8 * MIB,
            unit: MIB,
            max_object: 5 << 40,
        }
    }
}

impl Limits {
    /// Most bytes of a file.
    pub(super) fn max_length(&self) -> u64 {
        let parts = self.max_part / self.unit * self.unit * self.max_parts;
        self.max_object.min(parts)
    }

    /// Bytes of each slot of an upload other than the last. `None` if the file is too large.
    ///
    /// Each slot becomes a part of the final object. All parts have the same size, and the last one
    /// is not larger: Cloudflare R2 requires it.
    pub(super) fn slot_size(&self, chunk_size: Option<u64>, length: u64) -> Option<u64> {
        if length > self.max_length() {
            return None;
        }
        let fits = |size: &u64| {
            (self.min_part..=self.max_part).contains(size)
                && length.div_ceil(*size) <= self.max_parts
        };
        Some(chunk_size.filter(fits).unwrap_or_else(|| {
            let least = length.div_ceil(self.max_parts);
            self.slot.max(least.next_multiple_of(self.unit))
        }))
    }

    /// The same for an upload of appends. It is chosen when the first body begins, of this length.
    ///
    /// Each body is a part if the client sends bodies of equal length, and is not so long that a
    /// part takes much memory.
    pub(super) fn append_slot_size(&self, length: Option<u64>, first: Option<u64>) -> Option<u64> {
        let is_one_of_many = |len: &u64| {
            *len <= LARGEST_BODY * self.slot && length.is_none_or(|length| *len < length)
        };
        self.slot_size(first.filter(is_one_of_many), length.unwrap_or_default())
    }

    /// Most bytes of a file that has slots of this size.
    pub(super) fn longest_of(&self, slot: u64) -> u64 {
        self.max_object.min(slot.saturating_mul(self.max_parts))
    }
}

/// The slots of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slots {
    /// Bytes of each slot other than the last. Not zero.
    pub(super) size: u64,
    pub(super) length: u64,
}

impl Slots {
    pub(super) fn count(self) -> usize {
        // The length may be unknown.
        self.length.div_ceil(self.size).min(MAX_PARTS) as usize
    }

    /// The bytes of a slot.
    pub(super) fn range(self, slot: usize) -> Range<u64> {
        let start = (slot as u64).saturating_mul(self.size).min(self.length);
        start..start.saturating_add(self.size).min(self.length)
    }

    /// The slots that have some of these bytes.
    pub(super) fn touched(self, range: &Range<u64>) -> Range<usize> {
        if range.is_empty() {
            return 0..0;
        }
        (range.start / self.size) as usize..range.end.div_ceil(self.size) as usize
    }
}

/// A set of full slots.
#[derive(Clone, Debug, Default)]
pub(super) struct FullSlots {
    words: Vec<u64>,
}

impl FullSlots {
    pub(super) fn insert(&mut self, slot: usize) {
        let word = slot / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (slot % 64);
    }

    pub(super) fn contains(&self, slot: usize) -> bool {
        let word = self.words.get(slot / 64);
        word.is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    /// The runs of consecutive full slots among the first `count`.
    pub(super) fn runs(&self, count: usize) -> impl Iterator<Item = Range<usize>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = (at..count).find(|slot| self.contains(*slot))?;
            let end = (start..count).find(|slot| !self.contains(*slot));
            at = end.unwrap_or(count);
            Some(start..at)
        })
    }

    /// The first of `count` slots that is not full.
    pub(super) fn first_gap(&self, count: usize) -> Option<usize> {
        (0..count).find(|slot| !self.contains(*slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_fit_the_limits_of_multipart_uploads() {
        const GIB: u64 = 1 << 30;
        const TIB: u64 = 1 << 40;
        let limits = Limits::default();
        for (chunk_size, length, expected) in [
            // Each chunk is a part.
            (Some(5 * MIB), GIB, Some(5 * MIB)),
            (Some(5 * MIB + 1), GIB, Some(5 * MIB + 1)),
            (Some(8 * MIB), 8 * MIB * 10_000, Some(8 * MIB)),
            (Some(5 << 30), 5 * TIB, Some(5 << 30)),
            // Chunks larger than the file.
            (Some(100 * MIB), 10, Some(100 * MIB)),
            // Chunks that are too small, too large or too many.
            (None, 0, Some(8 * MIB)),
            (None, GIB, Some(8 * MIB)),
            (Some(0), GIB, Some(8 * MIB)),
            (Some(1), GIB, Some(8 * MIB)),
            (Some(5 * MIB - 1), GIB, Some(8 * MIB)),
            (Some((5 << 30) + 1), GIB, Some(8 * MIB)),
            (Some(u64::MAX), GIB, Some(8 * MIB)),
            (Some(8 * MIB), 8 * MIB * 10_000 + 1, Some(9 * MIB)),
            (Some(MIB), TIB, Some(105 * MIB)),
            (None, 5 * TIB, Some(525 * MIB)),
            // Too large.
            (None, 5 * TIB + 1, None),
            (Some(8 * MIB), i64::MAX as u64, None),
            (Some(u64::MAX), u64::MAX, None),
        ] {
            let case = format!("{chunk_size:?} of {length}");
            let size = limits.slot_size(chunk_size, length);
            assert_eq!(size, expected, "{case}");
            if let Some(size) = size {
                let slots = Slots { size, length };
                assert!(slots.count() <= 10_000, "{case}");
                assert!(length <= size || size >= limits.min_part, "{case}");
            }
        }
    }

    #[test]
    fn the_slots_of_appends_have_the_length_of_the_first_body() {
        const GIB: u64 = 1 << 30;
        let limits = Limits::default();
        for (length, first, expected) in [
            (Some(GIB), Some(5 * MIB), 5 * MIB),
            (Some(GIB), Some(64 * MIB), 64 * MIB),
            (None, Some(64 * MIB), 64 * MIB),
            // The whole file, too short, too long, and not known.
            (Some(10 * MIB), Some(10 * MIB), 8 * MIB),
            (Some(GIB), Some(5 * MIB - 1), 8 * MIB),
            (None, Some(0), 8 * MIB),
            (Some(GIB), Some(64 * MIB + 1), 8 * MIB),
            (None, Some(u64::MAX), 8 * MIB),
            (Some(GIB), None, 8 * MIB),
            (None, None, 8 * MIB),
            (Some(0), Some(0), 8 * MIB),
            // Too many parts.
            (Some(GIB << 10), Some(5 * MIB), 105 * MIB),
            (Some(GIB << 10), None, 105 * MIB),
        ] {
            let size = limits.append_slot_size(length, first);
            assert_eq!(size, Some(expected), "{first:?} of {length:?}");
        }
        assert_eq!(limits.append_slot_size(Some(u64::MAX), None), None);
        assert_eq!(limits.longest_of(8 * MIB), 80_000 * MIB);
        assert_eq!(limits.longest_of(u64::MAX), 5 << 40);
    }

    #[test]
    fn each_byte_is_in_one_slot() {
        for (size, length) in [
            (10, 0),
            (10, 1),
            (10, 9),
            (10, 10),
            (10, 11),
            (10, 25),
            (1, 5),
        ] {
            let slots = Slots { size, length };
            let mut end = 0;
            for slot in 0..slots.count() {
                let range = slots.range(slot);
                assert_eq!(range.start, end);
                assert!(!range.is_empty());
                assert!(range.end - range.start == size || range.end == length);
                end = range.end;
            }
            assert_eq!(end, length);
            assert!(slots.range(slots.count()).is_empty());
        }
        // The last chunk of Resumable.js can be almost twice as long as the others: two slots.
        let slots = Slots {
            size: 10,
            length: 35,
        };
        assert_eq!(slots.touched(&(20..35)), 2..4);
        assert_eq!((slots.range(2), slots.range(3)), (20..30, 30..35));
        for (range, expected) in [
            (0..0, 0..0),
            (0..1, 0..1),
            (0..10, 0..1),
            (0..11, 0..2),
            (9..11, 0..2),
            (10..20, 1..2),
            (10..10, 0..0),
            (0..35, 0..4),
        ] {
            assert_eq!(slots.touched(&range), expected, "{range:?}");
        }
        let huge = Slots {
            size: 1 << 30,
            length: u64::MAX,
        };
        assert!(huge.range(usize::MAX).is_empty());
    }

    #[test]
    fn full_slots() {
        let mut full = FullSlots::default();
        assert_eq!(full.first_gap(0), None);
        assert_eq!(full.first_gap(3), Some(0));
        for slot in [0, 1, 130, 2, 63, 64] {
            full.insert(slot);
            assert!(full.contains(slot));
        }
        assert!(!full.contains(3) && !full.contains(129) && !full.contains(100_000));
        assert_eq!((full.first_gap(3), full.first_gap(4)), (None, Some(3)));
        let runs = |count| full.runs(count).collect::<Vec<_>>();
        assert_eq!(runs(200), [0..3, 63..65, 130..131]);
        assert_eq!(runs(64), [0..3, 63..64]);
        assert!(runs(0).is_empty());
    }
}
