//! The four memory functions that compiled code calls and no C library gives us here.
//! Written as string instructions: a loop in Rust could be compiled into a call of itself.

use core::arch::{asm, naked_asm};

/// # Safety
/// As C's `memcpy`.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    naked_asm!("mov rax, rdi", "mov rcx, rdx", "rep movsb", "ret")
}

/// # Safety
/// As C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: copying upwards is right here; the caller vouches for both ranges.
        unsafe {
            asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _,
                inout("rcx") count => _, options(nostack, preserves_flags));
        }
    } else {
        // SAFETY: `to` overlaps the end of `from`, so this copies downwards, and sets
        // the direction flag back; the caller vouches for both ranges.
        unsafe {
            asm!("std", "rep movsb", "cld", inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
                inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _,
                inout("rcx") count => _, options(nostack));
        }
    }
    to
}

/// # Safety
/// As C's `memset`.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    naked_asm!(
        "mov r8, rdi",
        "mov eax, esi",
        "mov rcx, rdx",
        "rep stosb",
        "mov rax, r8",
        "ret"
    )
}

/// # Safety
/// As C's `memcmp`.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    naked_asm!(
        "xor eax, eax",
        "xor ecx, ecx",
        "2:",
        "cmp rcx, rdx",
        "jae 3f",
        "movzx eax, byte ptr [rdi + rcx]",
        "movzx r8d, byte ptr [rsi + rcx]",
        "inc rcx",
        "sub eax, r8d",
        "jz 2b",
        "3:",
        "ret",
    )
}

/// # Safety
/// As C's `bcmp`.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    naked_asm!("jmp {compare}", compare = sym memcmp)
}
