//! The extended attribute in which smbd keeps a file's DOS attributes (Samba's `librpc/idl/xattr.idl`, `xattr_DOSATTRIB`).

use std::path::Path;

use rustix::fs::lgetxattr;

use crate::records::NtTime;

const NAME: &str = "user.DOSATTRIB";

/// Longer than any that smbd writes: the longest has 52 bytes.
const LEN_MAX: usize = 128;

/// XATTR_DOSINFO_CREATE_TIME: the creation time is valid.
const HAS_CREATION_TIME: u32 = 0x10;

/// What smbd takes for the creation time of a file, if it has written that down.
pub(crate) fn creation_time(path: &Path) -> Option<NtTime> {
    let mut value = [0; LEN_MAX];
    // A file without it is none to worry about, nor is a file system without it.
    let len = lgetxattr(path, NAME, &mut value).ok()?;
    parse(value.get(..len)?)
}

/// An empty string, the version twice, and what the version has, from the flags at 8 on. Before the creation time version 5 has
/// the attributes, 4 another time as well, and 3 three sizes. Earlier ones have no flags and are not written any more: what
/// such a one says smbd knew when it granted the open.
fn parse(value: &[u8]) -> Option<NtTime> {
    let u16_at = |at: usize| Some(u16::from_le_bytes(value.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(value.get(at..at + 4)?.try_into().ok()?));
    if value.first() != Some(&0) {
        return None;
    }
    let creation_time_at = match u16_at(2)? {
        3 => 36,
        4 => 24,
        5 => 16,
        _ => return None,
    };
    let time = u64::from_le_bytes(value.get(creation_time_at..creation_time_at + 8)?.try_into().ok()?);
    (u32_at(8)? & HAS_CREATION_TIME != 0 && time != 0).then_some(NtTime(time))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As smbd 4.17 has written it.
    const VERSION_5: [u8; 24] = [
        0, 0, 5, 0, 5, 0, 0, 0, 0x11, 0, 0, 0, 0x20, 0, 0, 0, 0xb8, 0x22, 0x48, 0x35, 0x51, 0x7b, 0xdd, 0x01,
    ];

    #[test]
    fn the_creation_time_is_read_if_it_is_valid() {
        assert_eq!(parse(&VERSION_5), Some(NtTime(0x01dd_7b51_3548_22b8)));
        let mut without = VERSION_5;
        without[8] = 1;
        assert_eq!(parse(&without), None);
    }

    #[test]
    fn earlier_versions_have_it_further_behind() {
        let mut version_4 = [0; 32];
        version_4[..16].copy_from_slice(&VERSION_5[..16]);
        version_4[2..6].copy_from_slice(&[4, 0, 4, 0]);
        version_4[24..].copy_from_slice(&VERSION_5[16..]);
        assert_eq!(parse(&version_4), parse(&VERSION_5));

        let mut version_3 = [0; 52];
        version_3[..16].copy_from_slice(&VERSION_5[..16]);
        version_3[2..6].copy_from_slice(&[3, 0, 3, 0]);
        version_3[36..44].copy_from_slice(&VERSION_5[16..]);
        assert_eq!(parse(&version_3), parse(&VERSION_5));
    }

    #[test]
    fn what_is_cut_short_or_unknown_has_none() {
        for len in 0..VERSION_5.len() {
            assert_eq!(parse(&VERSION_5[..len]), None);
        }
        let mut unknown = VERSION_5;
        unknown[2] = 6;
        assert_eq!(parse(&unknown), None);
        assert_eq!(parse(b"0x20\0"), None);
    }
}
