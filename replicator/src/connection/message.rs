//! What a send points the kernel to.

/// Vectors to bytes that are somebody else's, and their header.
#[derive(Default)]
pub(super) struct Message {
    vectors: Vec<libc::iovec>,
    header: Option<Box<libc::msghdr>>,
}

impl Message {
    /// Points to these bytes, which must stay where they are while the message is used.
    pub(super) fn point<'a>(
        &mut self,
        parts: impl Iterator<Item = &'a [u8]>,
    ) -> *const libc::msghdr {
        let parts = parts.filter(|part| !part.is_empty());
        self.vectors.clear();
        self.vectors.extend(parts.map(|part| libc::iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        }));
        // SAFETY: all-zero bytes are a valid msghdr: null pointers and zero lengths.
        #[allow(unsafe_code)]
        let zeroed = || Box::new(unsafe { std::mem::zeroed::<libc::msghdr>() });
        let header = self.header.get_or_insert_with(zeroed);
        header.msg_iov = self.vectors.as_mut_ptr();
        header.msg_iovlen = self.vectors.len();
        &raw const **header
    }
}
