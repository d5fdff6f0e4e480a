//! Memory that was needed for a copy of the guest, and is the host's again after it.

/// What the allocator keeps of memory that was freed.
pub(crate) fn freed_memory() {
    // SAFETY: it only touches what is not in use.
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// The whole pages of a buffer whose contents are of no use any more: they are zeroes after this.
pub(crate) fn pages_of(buffer: &mut [u8]) {
    let page = rustix::param::page_size();
    let skipped = buffer.as_ptr().align_offset(page).min(buffer.len());
    let (_, whole) = buffer.split_at_mut(skipped);
    let len = whole.len() / page * page;
    // SAFETY: these pages belong to the buffer alone, which is private memory of the allocator's; bytes may have any value.
    #[allow(unsafe_code)]
    let result = unsafe { libc::madvise(whole.as_mut_ptr().cast(), len, libc::MADV_DONTNEED) };
    // Where the memory can't be given back it is kept.
    let _ = result;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_beside_the_whole_pages_stay() {
        let mut buffer = vec![7; 10 * 4096 + 100];
        let (left, rest) = buffer.split_at_mut(50);
        pages_of(&mut rest[..9 * 4096]);
        assert!(left.iter().all(|byte| *byte == 7));
        let zeroes = rest[..9 * 4096].iter().filter(|byte| **byte == 0).count();
        assert!(zeroes == 8 * 4096 || zeroes == 9 * 4096, "{zeroes}");
        assert!(rest[9 * 4096..].iter().all(|byte| *byte == 7));
        pages_of(&mut rest[..10]);
        pages_of(&mut []);
    }
}
