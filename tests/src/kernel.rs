//! Kernels of a few bytes, right and wrong ones.

/// Where the code of [`elf`] is loaded and entered.
pub const LOAD_ADDRESS: u64 = 0x20_0000;

const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;

/// A 64-bit ELF kernel with one segment that holds `code`, entered at its first byte.
#[must_use]
pub fn elf(code: &[u8]) -> Vec<u8> {
    let length = code.len() as u64;
    let start = HEADER + PROGRAM_HEADER;
    let mut image = Vec::new();
    // ELF64 header: class 64, little-endian, version 1, ET_EXEC, EM_X86_64.
    image.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    image.extend_from_slice(&LOAD_ADDRESS.to_le_bytes());
    image.extend_from_slice(&HEADER.to_le_bytes());
    image.extend_from_slice(&[0; 12]);
    for half in [HEADER as u16, PROGRAM_HEADER as u16, 1, 0, 0, 0] {
        image.extend_from_slice(&half.to_le_bytes());
    }
    // One PT_LOAD, readable, writable and executable.
    image.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
    for word in [start, LOAD_ADDRESS, LOAD_ADDRESS, length, length, 0x1000] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    image.extend_from_slice(code);
    image
}

/// Code that writes `byte` to an I/O port and halts: `mov dx, port; mov al, byte; out dx, al; hlt; jmp $-1`.
#[must_use]
pub fn out_and_halt(port: u16, byte: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, byte, 0xee, 0xf4, 0xeb, 0xfd]
}

/// Code that writes the number of its boot (a digit) to the serial port and resets the machine
/// through ACPI's reset register, until it was booted `boots` times: then it powers off.
#[must_use]
pub fn reset_until(boots: u8) -> Vec<u8> {
    // The counter lies in memory that no boot writes: `inc dword [0x300000]; mov eax, [0x300000]`.
    let mut code = vec![0xff, 0x04, 0x25, 0, 0, 0x30, 0];
    code.extend([0x8b, 0x04, 0x25, 0, 0, 0x30, 0]);
    // `add al, '0'; mov dx, 0x3f8; out dx, al; cmp al, '0' + boots; jae past the reset`.
    code.extend([0x04, b'0', 0x66, 0xba, 0xf8, 0x03, 0xee, 0x3c, b'0' + boots]);
    let reset = out_and_halt(0x602, 1);
    code.extend([0x73, reset.len() as u8]);
    code.extend(reset);
    code.extend(out_and_halt(0x600, 0x34));
    code
}

/// Code that powers the machine off if no line of either PIC reaches the processor, and panics otherwise.
#[must_use]
pub fn check_pics_masked() -> Vec<u8> {
    // `in al, 0x21; mov ah, al; in al, 0xa1; and al, ah; inc al; jnz past the power-off`.
    let mut code = vec![0xe4, 0x21, 0x88, 0xc4, 0xe4, 0xa1, 0x20, 0xe0, 0xfe, 0xc0];
    let off = out_and_halt(0x600, 0x34);
    code.extend([0x75, off.len() as u8]);
    code.extend(off);
    code.extend(out_and_halt(0x505, 1));
    code
}
