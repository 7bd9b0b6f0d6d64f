//! Failures that fuzzing has found, with the original inputs.

use super::checks;

/// One journal of another version made `undelivered`, `unfinished` and `sweep` fail for all
/// uploads.
#[test]
fn a_journal_of_another_version() {
    checks::journal(&[
        0, // Some chunks are stored.
        1, 0, 0, 3, 0, 0, // A bit of the fourth byte is changed.
    ]);
}

/// An upload that another process had removed and begun again was not listed by a process that knew
/// the first one.
#[test]
fn an_upload_that_another_process_began_again() {
    checks::machine(&[
        0, // Files.
        1, 0, 0, 0, 128, 0, 0, 0, 3, // Server 1: a chunk.
        0, 0, 9, // Server 0: cancelled,
        0, 0, 0, 0, 128, 0, 0, 0, 3, // and the chunk again.
        1, 0, 13, // Server 1: the list.
    ]);
}
