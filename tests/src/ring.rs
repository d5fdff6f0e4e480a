//! A kernel of a few hundred bytes for four processors: three of them pass a turn around by interrupts.
//!
//! Processor 0 starts the others and sleeps for good. Each of the others sleeps until an interrupt tells it that it has
//! the turn. Then it checks how many turns everyone has had, counts its own, and interrupts the next one. The
//! first also writes the next letter of the alphabet to the serial port. A count that does not fit (a processor or memory
//! from another moment than the rest) is an `X` there; an interrupt that was lost is silence.

#![allow(unsafe_code)]

use crate::kernel::elf;

/// Processors of the machine.
pub const VCPUS: u8 = 4;

std::arch::global_asm!(
    r#"
    .pushsection .rodata.ring, "a"
    .code64
evertwin_ring:
    # The others start in real mode at a page below 1 MiB.
    leaq    ring_other(%rip), %rsi
    movl    $0x30000, %edi
    movl    $(ring_end - ring_other), %ecx
    rep movsb
    movl    $0x1b, %ecx                 # IA32_APIC_BASE: x2APIC on
    rdmsr
    orl     $0x400, %eax
    wrmsr
    movl    $0x80f, %ecx                # spurious interrupts: APIC on
    xorl    %edx, %edx
    movl    $0x1ff, %eax
    wrmsr
    movl    $0x830, %ecx                # ICR: INIT, then start-up at page 0x30, to all but this one
    movl    $0xc4500, %eax
    wrmsr
    movl    $0xc4630, %eax
    wrmsr
1:  cli
    hlt
    jmp     1b

    # Variables, in the segment of the code: turns so far, and each processor's.
    .set    ring_turns, 0x1000
    .set    ring_counts, 0x1010

    .code16
ring_other:
    cli
    movw    %cs, %ax
    movw    %ax, %ds
    movw    %ax, %ss
    movl    $0x1b, %ecx
    rdmsr
    orl     $0x400, %eax
    wrmsr
    movl    $0x80f, %ecx
    xorl    %edx, %edx
    movl    $0x1ff, %eax
    wrmsr
    movl    $0x802, %ecx                # APIC ID: 1 to 3
    rdmsr
    movl    %eax, %ebx
    movw    %bx, %sp
    shlw    $9, %sp
    addw    $0x4000, %sp
    xorw    %ax, %ax                    # interrupt 0x40
    movw    %ax, %es
    movw    $(ring_interrupt - ring_other), %es:0x100
    movw    %cs, %es:0x102

ring_loop:
    cli
    movl    ring_turns, %eax
    xorl    %edx, %edx
    movl    $3, %ecx
    divl    %ecx
    movl    %eax, %ebp                  # rounds so far
    incl    %edx                        # whose turn it is
    cmpl    %ebx, %edx
    je      ring_turn
    sti
    hlt
    jmp     ring_loop

ring_turn:
    # Those before this one have had one turn more than there were rounds.
    movl    $1, %esi
1:  movl    %ebp, %edi
    cmpl    %ebx, %esi
    adcl    $0, %edi
    cmpl    %edi, ring_counts(,%esi,4)
    jne     ring_wrong
    incl    %esi
    cmpl    $3, %esi
    jbe     1b
    incl    ring_counts(,%ebx,4)
    incl    ring_turns
    cmpl    $1, %ebx
    jne     2f
    movl    %ebp, %eax
    xorl    %edx, %edx
    movl    $26, %ecx
    divl    %ecx
    movb    %dl, %al
    addb    $0x61, %al
    movw    $0x3f8, %dx
    outb    %al, %dx
2:  movl    %ebx, %edx                  # to the next
    cmpl    $3, %edx
    jne     3f
    xorl    %edx, %edx
3:  incl    %edx
    movl    $0x830, %ecx
    movl    $0x4040, %eax
    wrmsr
    jmp     ring_loop

ring_interrupt:
    pushl   %eax
    pushl   %ecx
    pushl   %edx
    movl    $0x80b, %ecx                # end of interrupt
    xorl    %eax, %eax
    xorl    %edx, %edx
    wrmsr
    popl    %edx
    popl    %ecx
    popl    %eax
    iretw

ring_wrong:
    movw    $0x3f8, %dx
    movb    $0x58, %al
    outb    %al, %dx
1:  cli
    hlt
    jmp     1b
ring_end:
    .code64
evertwin_ring_end:
    .popsection
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static evertwin_ring: u8;
    static evertwin_ring_end: u8;
}

/// The kernel's image.
#[must_use]
pub fn kernel() -> Vec<u8> {
    let (start, end) = (&raw const evertwin_ring, &raw const evertwin_ring_end);
    // SAFETY: the two symbols are the bounds of one read-only object of this program.
    let code = unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) };
    elf(code)
}
