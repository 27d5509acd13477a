//! A directory as one file: a tar archive, in the form that POSIX calls ustar.

/// A block; every part of an archive fills whole ones.
const BLOCK: usize = 512;

/// Packs files below a directory. Names are short and ASCII, as ours are.
pub(super) fn tar(directory: &str, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in files {
        archive.extend(header(&format!("{directory}/{name}"), content.len()));
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}

fn header(name: &str, size: usize) -> Vec<u8> {
    let field = |text: &str, width: usize| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(width, 0);
        bytes
    };
    let number = |number: usize, width: usize| field(&format!("{number:0digits$o}", digits = width - 1), width);
    let checked = |sum: &[u8]| {
        let parts = [
            field(name, 100),
            number(0o644, 8),
            number(0, 8),
            number(0, 8),
            number(size, 12),
            number(0, 12),
            sum.to_vec(),
            field("0", 1),
            field("", 100),
            b"ustar\x0000".to_vec(),
        ];
        field_of(parts.concat())
    };
    // The sum is that of the block with spaces in its place.
    let sum: usize = checked(&[b' '; 8]).iter().map(|byte| usize::from(*byte)).sum();
    checked(&field(&format!("{sum:06o}\0 "), 8))
}

fn field_of(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(BLOCK, 0);
    bytes
}
