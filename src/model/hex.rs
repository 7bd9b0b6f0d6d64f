//! Lower-case hexadecimal, in both directions.

use std::fmt;

/// Displays bytes as lower-case hexadecimal digits.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Decodes hexadecimal digits of either case. `None` if there are others, or an odd number of them.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let bytes = text.as_bytes().chunks(2).map(|pair| match *pair {
        [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
        _ => None,
    });
    bytes.collect()
}

/// Decodes exactly what [`Hex`] writes for `N` bytes.
pub(crate) fn decode_exact<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    decode(text)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding() {
        for (text, expected) in [
            ("", Some(&[][..])),
            ("00ff", Some(&[0, 255])),
            ("aB", Some(&[0xab])),
            ("a", None),
            ("+f", None),
            ("0x", None),
            ("é", None),
        ] {
            assert_eq!(decode(text).as_deref(), expected, "{text}");
        }
        assert_eq!(decode_exact::<2>("00ff"), Some([0, 255]));
        assert_eq!(Hex(&[0, 255]).to_string(), "00ff");
        for text in ["00fF", "00", "00ff00", "00fg"] {
            assert_eq!(decode_exact::<2>(text), None, "{text}");
        }
    }
}
