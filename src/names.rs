//! Names that clients send, made safe for file systems.

use std::path::PathBuf;

use unicode_normalization::{UnicodeNormalization as _, char::is_combining_mark};

/// Most bytes of a name: all file systems allow this many.
const MAX_NAME: usize = 255;

/// Most bytes of a path. With its folder, macOS allows 1024 and Linux 4096.
const MAX_PATH: usize = 768;

/// Most components of a path.
const MAX_DEPTH: usize = 32;

/// Makes a name that is safe as a file name on Linux, macOS and Windows.
///
/// It takes the last component, if `name` is a path of any of these systems. It removes control
/// characters, characters that are invisible or change the direction of text, characters that
/// Windows forbids, dots and spaces at both ends, and a leading `-`. Joiners (U+200C and U+200D)
/// between two characters stay: words of Persian and of Indic languages are misspelt without them,
/// and emoji fall apart. So does the variation selector of an emoji. The name of a Windows device
/// gets a prefix. At most 255 bytes remain, with the extension. Accented letters are composed
/// (Unicode form NFC), because macOS sends them decomposed. If nothing remains the result is
/// `file`. A safe name does not change.
///
/// ```
/// use tower_resumable::safe_file_name;
///
/// assert_eq!(safe_file_name("报告.pdf"), "报告.pdf");
/// assert_eq!(safe_file_name("../../etc/passwd"), "passwd");
/// assert_eq!(safe_file_name(r"C:\temp\CON"), "_CON");
/// assert_eq!(safe_file_name("a:b\u{202e}?.txt"), "ab.txt");
/// assert_eq!(safe_file_name("می\u{200c}خواهم.pdf"), "می\u{200c}خواهم.pdf");
/// assert_eq!(safe_file_name("re\u{301}sume\u{301}.pdf"), "r\u{e9}sum\u{e9}.pdf");
/// assert_eq!(safe_file_name(".."), "file");
/// ```
pub fn safe_file_name(name: &str) -> String {
    let last = name.rsplit(SEPARATORS).next().unwrap_or_default();
    safe_component(last).unwrap_or_else(|| "file".to_owned())
}

/// Makes a relative path that is safe below any folder on Linux, macOS and Windows: it never leads
/// out of the folder.
///
/// Each component is made safe as by [`safe_file_name`]. The separators of all these systems are
/// understood. Components that become empty are left out, as are `.`, `..`, the root and a drive
/// letter. At most 32 components and 768 bytes remain: the innermost folders are left out first,
/// and the file name is kept. If nothing remains the result is `file`. A safe path does not change.
///
/// Two different paths can have the same result. [`FileStore`](crate::FileStore) then adds a number
/// to the name of the later file.
///
/// ```
/// use std::path::Path;
/// use tower_resumable::safe_relative_path;
///
/// assert_eq!(safe_relative_path("photos/2024/a.jpg"), Path::new("photos/2024/a.jpg"));
/// assert_eq!(safe_relative_path("/photos/../../etc//passwd"), Path::new("photos/etc/passwd"));
/// assert_eq!(safe_relative_path(r"C:\temp\aux\a.txt"), Path::new("temp/_aux/a.txt"));
/// assert_eq!(safe_relative_path("../.."), Path::new("file"));
/// ```
pub fn safe_relative_path(path: &str) -> PathBuf {
    let mut kept: Vec<String> = Vec::new();
    for component in path.split(SEPARATORS) {
        let component = if kept.is_empty() {
            without_drive(component)
        } else {
            component
        };
        kept.extend(safe_component(component));
    }
    let Some(name) = kept.pop() else {
        return "file".into();
    };
    let mut len = name.len();
    let mut safe: PathBuf = kept
        .into_iter()
        .take(MAX_DEPTH - 1)
        .take_while(|folder| {
            len += folder.len() + 1;
            len <= MAX_PATH
        })
        .collect();
    safe.push(name);
    safe
}

const SEPARATORS: [char; 2] = ['/', '\\'];

fn without_drive(component: &str) -> &str {
    match component.as_bytes() {
        [letter, b':', ..] if letter.is_ascii_alphabetic() => &component[2..],
        _ => component,
    }
}

/// The safe name of a single component.
fn safe_component(name: &str) -> Option<String> {
    // Composed after each filter, which may have removed what stood between the letters.
    let kept = name.chars().filter(|c| is_joiner(*c) || !is_unsafe(*c));
    let kept: String = with_joiners(kept.nfc()).nfc().collect();
    let is_space = |c: char| c == '.' || c.is_whitespace();
    let kept = kept
        .trim_start_matches(|c| is_space(c) || c == '-')
        .trim_end_matches(is_space);
    if kept.is_empty() {
        return None;
    }
    // First shortened, because that may produce the name of a device.
    let kept = shortened(kept);
    if is_device(&kept) {
        Some(shortened(&format!("_{kept}")))
    } else {
        Some(kept)
    }
}

/// Removes the joiners that do not follow a character which they can change. Those after `a` or a
/// space would only make two names look equal.
fn with_joiners(name: impl Iterator<Item = char>) -> impl Iterator<Item = char> {
    let (mut base, mut last) = (None, None);
    name.filter(move |&c| {
        let follows_joiner = last.is_some_and(|last| matches!(last, '\u{200c}' | '\u{200d}'));
        let stays = match c {
            '\u{200c}' | '\u{200d}' => base.is_some_and(can_be_joined) && !follows_joiner,
            '\u{fe0f}' => base.is_some_and(is_pictograph) && last != Some(c),
            _ => {
                if !is_combining_mark(c) {
                    base = Some(c);
                }
                true
            }
        };
        if stays {
            last = Some(c);
        }
        stays
    })
}

/// The joiners, and the selector of the coloured form of an emoji, which stands before a joiner.
fn is_joiner(c: char) -> bool {
    matches!(c, '\u{200c}' | '\u{200d}' | '\u{fe0f}')
}

/// Characters of scripts in which a joiner changes the shape of letters, and emoji.
fn can_be_joined(c: char) -> bool {
    is_pictograph(c)
        || matches!(
            c,
            '\u{590}'..='\u{10ff}'
                | '\u{1700}'..='\u{1cff}'
                | '\u{a800}'..='\u{abff}'
                | '\u{fb50}'..='\u{fdff}'
                | '\u{fe70}'..='\u{fefc}'
                | '\u{10a00}'..='\u{11fff}'
                | '\u{1e900}'..='\u{1e95f}'
        )
}

/// Symbols and emoji.
fn is_pictograph(c: char) -> bool {
    matches!(c, '\u{2190}'..='\u{2bff}' | '\u{1f000}'..='\u{1faff}')
}

fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '<' | '>' | ':' | '"' | '|' | '?' | '*' | '/' | '\\')
        // Line and paragraph separator, embeddings and overrides, interlinear annotations.
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{fff9}'..='\u{fffb}')
        || is_invisible(c)
}

/// Unicode's `Default_Ignorable_Code_Point` (`DerivedCoreProperties.txt` of version 16): direction
/// and width marks, fillers, tags and other characters that are not displayed.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fff8}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

/// Names of Windows devices, which are reserved with any extension.
fn is_device(name: &str) -> bool {
    let stem = name
        .split('.')
        .next()
        .unwrap_or_default()
        .trim_end()
        .to_ascii_uppercase();
    match stem.as_str() {
        "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$" => true,
        _ => stem
            .strip_prefix("COM")
            .or_else(|| stem.strip_prefix("LPT"))
            .is_some_and(|rest| {
                let mut chars = rest.chars();
                matches!(chars.next(), Some('0'..='9' | '¹' | '²' | '³')) && chars.next().is_none()
            }),
    }
}

/// Cuts at a character boundary: file systems count bytes.
fn shortened(name: &str) -> String {
    if name.len() <= MAX_NAME {
        return name.to_owned();
    }
    let (stem, extension) = match name.rfind('.') {
        // A longer one is not an extension.
        Some(dot) if name.len() - dot <= 32 => name.split_at(dot),
        _ => (name, ""),
    };
    let mut end = MAX_NAME - extension.len();
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    let stem = stem[..end].trim_end_matches(|c: char| c == '.' || c.is_whitespace());
    format!("{stem}{extension}")
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use super::*;

    #[test]
    fn safe_names() {
        for (raw, safe) in [
            ("a.txt", "a.txt"),
            ("", "file"),
            ("...", "file"),
            ("   ", "file"),
            ("\u{3000}\u{200b} . ", "file"),
            (".profile", "profile"),
            ("-rf", "rf"),
            ("- . -x", "x"),
            ("x. ", "x"),
            ("x\u{a0}", "x"),
            ("a/b\\c.txt", "c.txt"),
            ("/etc/passwd", "passwd"),
            ("dir/", "file"),
            ("a\0b\r\n\u{7f}\u{85}.txt", "ab.txt"),
            ("nul.txt", "_nul.txt"),
            ("nul .txt", "_nul .txt"),
            ("LPT1.", "_LPT1"),
            ("COM¹", "_COM¹"),
            ("conin$", "_conin$"),
            ("C\u{200b}ON", "_CON"),
            ("-CON", "_CON"),
            ("COM10", "COM10"),
            ("console", "console"),
            ("a:b", "ab"),
            ("\"quoted\" <b>.txt", "quoted b.txt"),
            ("日本語.txt", "日本語.txt"),
            ("e\u{301}.txt", "\u{e9}.txt"),
            ("e\u{200d}\u{301}.txt", "\u{e9}.txt"),
            // Decomposed, as macOS sends it.
            ("\u{1112}\u{1161}\u{11ab}.hwp", "\u{d55c}.hwp"),
            // Composes with `<` and `>`, which are not allowed.
            ("\u{226e}", "\u{226e}"),
            ("<\u{338}a", "\u{338}a"),
            ("x\u{202e}gpj.exe", "xgpj.exe"),
            ("x\u{2066}y\u{61c}\u{200e}.txt", "xy.txt"),
            ("invoice\u{e0020}\u{ad}\u{fe0f}.pdf", "invoice.pdf"),
            // Joiners stay where they mean something.
            ("👩\u{200d}🔬.png", "👩\u{200d}🔬.png"),
            ("❤\u{fe0f}\u{200d}🔥.png", "❤\u{fe0f}\u{200d}🔥.png"),
            ("می\u{200c}خواهم.pdf", "می\u{200c}خواهم.pdf"),
            ("क्\u{200d}ष.pdf", "क्\u{200d}ष.pdf"),
            // A word that ends with one, in Malayalam.
            ("അവന്\u{200d}.pdf", "അവന്\u{200d}.pdf"),
            ("می\u{200c}\u{200d}\u{200c}خ.pdf", "می\u{200c}خ.pdf"),
            ("a\u{200d}b\u{200c}.pdf", "ab.pdf"),
            ("\u{200d}می \u{200c}خ.pdf", "می خ.pdf"),
            ("e\u{301}\u{200d}x.pdf", "\u{e9}x.pdf"),
            ("می\u{202e}\u{200b}\u{200f}خ.pdf", "میخ.pdf"),
        ] {
            assert_eq!(safe_file_name(raw), safe, "{raw:?}");
        }
    }

    #[test]
    fn safe_names_are_short() {
        for (raw, safe) in [
            ("a".repeat(255), "a".repeat(255)),
            ("a".repeat(256), "a".repeat(255)),
            ("é".repeat(128), "é".repeat(127)),
            ("é".repeat(200) + ".txt", "é".repeat(125) + ".txt"),
            // Only its decomposed form is too long.
            ("e\u{301}".repeat(127), "é".repeat(127)),
            (
                "x".repeat(240) + &".y".repeat(9),
                "x".repeat(240) + &".y".repeat(7),
            ),
            // What is cut off leaves a device's name.
            (format!("CON{}x", " ".repeat(300)), "_CON".into()),
            (format!("aux{}x.txt", " ".repeat(300)), "_aux.txt".into()),
            (format!("nul.{}", "x".repeat(251)), {
                format!("_nul.{}", "x".repeat(250))
            }),
        ] {
            let is = safe_file_name(&raw);
            assert_eq!(is, safe, "{raw:?}");
            assert!(is.len() <= 255, "{} bytes", is.len());
        }
    }

    /// Each character, at the beginning, before an accent, and at the end.
    #[test]
    fn no_character_makes_a_name_unsafe() {
        // The other ranges contain ideographs that stay as they are, or nothing.
        let assigned = ('\0'..='\u{1ffff}')
            .chain('\u{2f800}'..='\u{2fa1f}')
            .chain('\u{e0000}'..='\u{e1000}');
        for c in assigned {
            let raw = format!("{c}e{c}\u{301}.{c}");
            check_name(&raw, &safe_file_name(&raw));
        }
        // Controls; characters that Windows forbids, and separators; those in no other list; and
        // invisible ones.
        let removed = ('\0'..=char::MAX).filter(|c| is_unsafe(*c)).count();
        assert_eq!(removed, 65 + 9 + 5 + 4174);
    }

    #[test]
    fn safe_paths() {
        for (raw, safe) in [
            ("a.txt", "a.txt"),
            ("a/b/c.txt", "a/b/c.txt"),
            ("a\\b\\c.txt", "a/b/c.txt"),
            ("a\\b/c.txt", "a/b/c.txt"),
            ("", "file"),
            ("/", "file"),
            ("./a.txt", "a.txt"),
            ("a/./b//c.txt", "a/b/c.txt"),
            ("../../etc/passwd", "etc/passwd"),
            ("a/../b", "a/b"),
            ("a/.. /b", "a/b"),
            ("a/.\u{200b}./b", "a/b"),
            ("a/...", "a"),
            ("dir/", "dir"),
            ("/etc/cron.d/x", "etc/cron.d/x"),
            ("//server/share/x", "server/share/x"),
            (r"\\server\share\x", "server/share/x"),
            (r"\\?\C:\x", "x"),
            (r"\\.\PhysicalDrive0", "PhysicalDrive0"),
            (r"C:\a\b.txt", "a/b.txt"),
            ("c:b.txt", "b.txt"),
            ("c:", "file"),
            ("c:../x", "x"),
            ("a/c:/x", "a/c/x"),
            ("a/b:stream", "a/bstream"),
            ("con/nul.txt", "_con/_nul.txt"),
            (".git/hooks/-x", "git/hooks/x"),
            ("~/x", "~/x"),
            ("a\0/b\r\n", "a/b"),
            ("e\u{301}/报告.pdf", "\u{e9}/报告.pdf"),
            ("..／..／x", "／..／x"),
        ] {
            assert_eq!(safe_relative_path(raw), Path::new(safe), "{raw:?}");
        }
    }

    #[test]
    fn safe_paths_are_short_and_keep_the_name() {
        let long = "d".repeat(255);
        for (raw, safe) in [
            ("x/".repeat(40) + "name", "x/".repeat(31) + "name"),
            (
                format!("{long}/{long}/{long}/name.txt"),
                format!("{long}/{long}/name.txt"),
            ),
            (
                format!("{long}/{long}/{long}"),
                // 767 bytes.
                format!("{long}/{long}/{long}"),
            ),
            (
                format!("{long}/{long}/a/{long}"),
                format!("{long}/{long}/{long}"),
            ),
            // A folder is left out with all folders inside it.
            (
                format!("{long}/{long}/{long}/a/n"),
                format!("{long}/{long}/n"),
            ),
            ("é".repeat(1000) + "/n", "é".repeat(127) + "/n"),
        ] {
            let is = safe_relative_path(&raw);
            assert_eq!(is, Path::new(&safe), "{raw:?}");
            check_path(&raw, &is);
        }
    }

    /// Random paths of pieces of all kinds.
    #[test]
    fn no_path_leads_out() {
        const PIECES: &[&str] = &[
            "..", ".", "/", "\\", "C:", "con", " ", "\0", "\u{200b}", "\u{301}", "a", "-", ":",
            "?", "é", "~", "😀", "x.txt", "\u{200c}", "\u{200d}", "\u{fe0f}", "ی", "्", "\u{2329}",
        ];
        let mut seed = 1u64;
        for _ in 0..50_000 {
            let raw: String = (0..12)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    PIECES[(seed >> 33) as usize % PIECES.len()]
                })
                .collect();
            check_path(&raw, &safe_relative_path(&raw));
            check_name(&raw, &safe_file_name(&raw));
        }
    }

    fn check_path(raw: &str, safe: &Path) {
        let text = safe.to_str().unwrap();
        assert!(
            text.len() <= MAX_PATH && !text.is_empty(),
            "{raw:?}: {safe:?}"
        );
        assert!(safe.is_relative(), "{raw:?}: {safe:?}");
        for component in safe.components() {
            let Component::Normal(name) = component else {
                panic!("{raw:?}: {safe:?}");
            };
            check_name(raw, name.to_str().unwrap());
        }
        assert_eq!(safe_relative_path(text), safe, "{raw:?}");
    }

    fn check_name(raw: &str, safe: &str) {
        assert!(
            !safe.is_empty() && safe.len() <= MAX_NAME,
            "{raw:?}: {safe:?}"
        );
        let is_out = |c| is_unsafe(c) && !is_joiner(c);
        assert!(!safe.contains(is_out), "{raw:?}: {safe:?}");
        let at_end = |c: char| c == '.' || c.is_whitespace();
        assert!(
            !safe.starts_with(at_end) && !safe.ends_with(at_end) && !safe.starts_with('-'),
            "{raw:?}: {safe:?}"
        );
        assert!(!is_device(safe), "{raw:?}: {safe:?}");
        assert!(
            unicode_normalization::is_nfc(safe),
            "{raw:?}: {safe:?} can be composed"
        );
        assert_eq!(safe_file_name(safe), safe, "{raw:?}");
    }
}
