//! Safe names of files.

use tower_resumable::safe_file_name;

/// The text of a name, cut off before what is not UTF-8.
pub fn names(data: &[u8]) {
    let raw = String::from_utf8_lossy(data);
    let safe = safe_file_name(&raw);
    assert_eq!(safe_file_name(&safe), safe, "made of {raw:?}");
    assert!((1..=255).contains(&safe.len()), "{safe:?} of {raw:?}");
    assert!(!safe.starts_with(['.', ' ', '-']), "{safe:?} of {raw:?}");
    assert!(!safe.ends_with(['.', ' ']), "{safe:?} of {raw:?}");
    let forbidden = |c: char| c.is_control() || r#"/\<>:"|?*"#.contains(c);
    assert!(!safe.contains(forbidden), "{safe:?} of {raw:?}");
    let stem = safe.split('.').next().unwrap().trim_end();
    let devices = ["con", "prn", "aux", "nul", "com1", "lpt9", "conin$"];
    assert!(
        !devices
            .iter()
            .any(|device| stem.eq_ignore_ascii_case(device)),
        "{safe:?} of {raw:?}"
    );
    let mut parts = std::path::Path::new(&safe).components();
    assert!(
        matches!(parts.next(), Some(std::path::Component::Normal(_))) && parts.next().is_none(),
        "{safe:?} of {raw:?}"
    );
}
