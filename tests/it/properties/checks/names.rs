//! Safe file names.

use std::path::{Component, Path};

use tower_resumable::{safe_file_name, safe_relative_path};

/// A safe name is not changed again and is a single name on every system. A safe path never leads
/// out of its folder.
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
    let path = safe_relative_path(&raw);
    let text = path.to_str().unwrap();
    assert_eq!(safe_relative_path(text), path, "made of {raw:?}");
    assert!(text.len() <= 768, "{path:?} of {raw:?}");
    assert!(path.components().count() <= 32, "{path:?} of {raw:?}");
    for part in path.components() {
        assert!(matches!(part, Component::Normal(_)), "{path:?} of {raw:?}");
        let part = part.as_os_str().to_str().unwrap();
        assert_eq!(safe_file_name(part), part, "made of {raw:?}");
    }
    assert_eq!(Path::new(&safe).components().count(), 1);
}
