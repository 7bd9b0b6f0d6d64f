use std::{collections::BTreeMap, ops::Range};

/// A set of byte positions, as ranges that neither overlap nor touch.
///
/// ```
/// use tower_resumable::store::RangeSet;
///
/// let mut stored = RangeSet::default();
/// stored.insert(0, 10);
/// stored.insert(20, 5);
/// assert!(stored.covers(2, 8) && !stored.covers(8, 4));
/// assert_eq!(stored.gaps(0, 30), [10..20, 25..30]);
/// stored.insert(10, 10);
/// assert_eq!(stored.iter().collect::<Vec<_>>(), [0..25]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(Ranges<()>);

impl RangeSet {
    /// Adds `len` bytes from `offset`. Bytes that are in the set already change nothing.
    pub fn insert(&mut self, offset: u64, len: u64) {
        for gap in self.gaps(offset, len) {
            self.0.insert(gap, ());
        }
    }

    /// Whether all `len` bytes from `offset` are in the set. `true` if `len` is 0.
    pub fn covers(&self, offset: u64, len: u64) -> bool {
        self.0.covers(offset, len)
    }

    /// Returns the ranges of the `len` bytes from `offset` that are not in the set, in order.
    pub fn gaps(&self, offset: u64, len: u64) -> Vec<Range<u64>> {
        self.0.gaps(offset, len)
    }

    /// The number of bytes from byte 0 up to the first gap.
    pub fn prefix(&self) -> u64 {
        let first = self.iter().next().filter(|range| range.start == 0);
        first.map_or(0, |range| range.end)
    }

    /// The number of bytes in the set.
    pub fn total(&self) -> u64 {
        self.0.total
    }

    /// The number of ranges.
    pub fn len(&self) -> usize {
        self.0.map.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.map.is_empty()
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.map.iter().map(|(start, (end, ()))| *start..*end)
    }
}

/// What is known of the bytes of a range, and of two that follow each other.
pub(crate) trait Joined: Clone {
    fn join(&self, next: &Self, next_len: u64) -> Self;
}

impl Joined for () {
    fn join(&self, (): &(), _: u64) {}
}

/// The CRC-32 of a range's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crc(pub(crate) u32);

impl Joined for Crc {
    fn join(&self, next: &Self, next_len: u64) -> Self {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        hasher.combine(&crc32fast::Hasher::new_with_initial_len(next.0, next_len));
        Self(hasher.finalize())
    }
}

impl Crc {
    /// The CRC-32 of nothing.
    pub(crate) const EMPTY: Self = Self(0);

    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(crc32fast::hash(bytes))
    }
}

/// Ranges that neither overlap nor touch, each with what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ranges<V> {
    /// From a range's start to its end.
    map: BTreeMap<u64, (u64, V)>,
    total: u64,
}

impl<V> Default for Ranges<V> {
    fn default() -> Self {
        Self {
            map: BTreeMap::new(),
            total: 0,
        }
    }
}

impl<V: Joined> Ranges<V> {
    /// Adds a range none of whose bytes is in the set.
    pub(crate) fn insert(&mut self, range: Range<u64>, value: V) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        let mut value = value;
        self.total += end - start;
        if let Some((&before, (touch, known))) = self.map.range(..start).next_back() {
            if *touch == start {
                value = known.join(&value, end - start);
                self.map.remove(&before);
                start = before;
            }
        }
        if let Some((next_end, known)) = self.map.remove(&end) {
            value = value.join(&known, next_end - end);
            end = next_end;
        }
        self.map.insert(start, (end, value));
    }

    pub(crate) fn covers(&self, offset: u64, len: u64) -> bool {
        let end = offset.saturating_add(len);
        let around = self.map.range(..=offset).next_back();
        len == 0 || around.is_some_and(|(_, (stored, _))| *stored >= end)
    }

    pub(crate) fn gaps(&self, offset: u64, len: u64) -> Vec<Range<u64>> {
        let end = offset.saturating_add(len);
        let first = self.start_before(offset);
        let mut gaps = Vec::new();
        let mut at = offset;
        for (start, (stored, _)) in self.map.range(first..end) {
            if at < *start {
                gaps.push(at..*start);
            }
            at = at.max(*stored);
        }
        if at < end {
            gaps.push(at..end);
        }
        gaps
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Where the last range ends.
    pub(crate) fn end(&self) -> u64 {
        let last = self.map.last_key_value();
        last.map_or(0, |(_, (end, _))| *end)
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// The number of ranges after another one is added.
    pub(crate) fn len_with(&self, offset: u64, len: u64) -> usize {
        let end = offset.saturating_add(len);
        let touched = self
            .map
            .range(self.start_before(offset)..=end)
            .filter(|(_, (stored, _))| *stored >= offset);
        self.map.len() + 1 - touched.count()
    }

    /// The start of the last range that starts at or before `offset`; `offset` if there is none.
    fn start_before(&self, offset: u64) -> u64 {
        let before = self.map.range(..=offset).next_back();
        before.map_or(offset, |(start, _)| *start)
    }

    /// What is known of the range that starts at 0, if it ends at `end`.
    pub(crate) fn whole(&self, end: u64) -> Option<&V> {
        self.map
            .get(&0)
            .filter(|(stored, _)| *stored == end)
            .map(|(_, value)| value)
    }

    pub(crate) fn to_set(&self) -> RangeSet {
        let map = self
            .map
            .iter()
            .map(|(start, (end, _))| (*start, (*end, ())))
            .collect();
        RangeSet(Ranges {
            map,
            total: self.total,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_sets_equal_sets_of_bytes() {
        const SIZE: usize = 64;
        let mut seed = 7u32;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as usize % below
        };
        for round in 0..500 {
            let content: Vec<u8> = (0..SIZE).map(|i| (i * 7 + round) as u8).collect();
            let (mut set, mut sums) = (RangeSet::default(), Ranges::<Crc>::default());
            let mut model = [false; SIZE];
            for _ in 0..12 {
                let start = random(SIZE + 1);
                let len = random(SIZE + 1 - start);
                let expected = sums.len_with(start as u64, len as u64);
                for gap in sums.gaps(start as u64, len as u64) {
                    let bytes = &content[gap.start as usize..gap.end as usize];
                    sums.insert(gap, Crc::of(bytes));
                }
                set.insert(start as u64, len as u64);
                model[start..start + len].fill(true);
                assert!(len == 0 || sums.len() == expected);

                let bytes = |range: Range<u64>| range.start as usize..range.end as usize;
                assert_eq!(set.total(), model.iter().filter(|b| **b).count() as u64);
                assert_eq!(sums.total(), set.total());
                assert_eq!(set.is_empty(), set.total() == 0);
                assert_eq!(sums.to_set(), set);
                let mut rebuilt = [false; SIZE];
                set.iter()
                    .for_each(|range| rebuilt[bytes(range)].fill(true));
                assert_eq!(rebuilt, model);
                let edges = model.windows(2).filter(|w| w[0] != w[1]).count();
                assert_eq!(set.len(), (edges + usize::from(model[0])).div_ceil(2));

                let (at, n) = (random(SIZE), random(SIZE));
                let n = n.min(SIZE - at);
                assert_eq!(
                    set.covers(at as u64, n as u64),
                    model[at..at + n].iter().all(|b| *b)
                );
                let mut missing = [false; SIZE];
                for gap in set.gaps(at as u64, n as u64) {
                    assert!(gap.start < gap.end);
                    missing[bytes(gap)].fill(true);
                }
                for i in 0..SIZE {
                    assert_eq!(missing[i], (at..at + n).contains(&i) && !model[i]);
                }
            }
            set.insert(0, SIZE as u64);
            for gap in sums.gaps(0, SIZE as u64) {
                let bytes = &content[gap.start as usize..gap.end as usize];
                sums.insert(gap, Crc::of(bytes));
            }
            assert_eq!(sums.whole(SIZE as u64), Some(&Crc::of(&content)));
        }
    }

    #[test]
    fn ranges_end_at_the_largest_number() {
        let mut set = RangeSet::default();
        set.insert(u64::MAX - 1, 5);
        assert!(set.covers(u64::MAX - 1, 1));
        assert!(!set.covers(0, 1) && set.covers(3, 0));
        assert_eq!(set.gaps(u64::MAX, 0), []);
    }
}
