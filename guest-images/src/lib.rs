//! Guest images that are embedded in the evertwin binary.

/// The pico guest: a static x86-64 ELF, linked at 2 MiB (physical = virtual), that is
/// entered like a Linux `vmlinux` by the 64-bit boot protocol.
pub const PICO: &[u8] = include_bytes!(env!("PICO_IMAGE"));

#[cfg(test)]
mod tests {
    use super::PICO;

    fn field(at: usize) -> u64 {
        u64::from_le_bytes(PICO[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn pico_is_an_x86_64_elf_linked_at_two_mebibytes() {
        assert_eq!(&PICO[..6], b"\x7fELF\x02\x01");
        assert_eq!(PICO[18], 62, "machine is x86-64");
        let entry = field(24);
        assert_eq!(entry, 0x20_0000);
        let program_header = field(32) as usize;
        assert_eq!(
            field(program_header + 16),
            entry,
            "virtual address of the first segment"
        );
        assert_eq!(
            field(program_header + 24),
            entry,
            "physical address of the first segment"
        );
    }
}
