use crate::world::Case;
pub const CASES: &[Case] = &[];
