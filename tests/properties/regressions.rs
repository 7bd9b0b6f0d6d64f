//! What fuzzing has found, kept as it was found.

use super::checks;

/// One journal of another version stopped `undelivered`, `unfinished` and `sweep` for all uploads.
#[test]
fn a_journal_of_another_version() {
    checks::journal(&[0, 1, 0, 3, 0, 0]);
}
