//! Lower-case hexadecimal, in both directions.

use std::fmt;

/// Displays bytes as lower-case hexadecimal digits.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        // Most are ids of 32 bytes: their text is written at once. It is ASCII: no error is lost.
        for bytes in self.0.chunks(32) {
            let mut text = [0; 64];
            for (digits, byte) in text.chunks_mut(2).zip(bytes) {
                digits[0] = DIGITS[usize::from(byte >> 4)];
                digits[1] = DIGITS[usize::from(byte & 15)];
            }
            let text = std::str::from_utf8(&text[..2 * bytes.len()]);
            f.write_str(text.map_err(|_| fmt::Error)?)?;
        }
        Ok(())
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
        let long: Vec<u8> = (0..70).collect();
        assert_eq!(decode(&Hex(&long).to_string()), Some(long));
        for text in ["00fF", "00", "00ff00", "00fg"] {
            assert_eq!(decode_exact::<2>(text), None, "{text}");
        }
    }
}
