//! The ring-0 stub: from the 64-bit Linux boot protocol's entry to ring 3.
//!
//! Everything that can be laid out when the image is linked is: page tables, GDT, IDT
//! and TSS are data, so that only a few dozen instructions run in ring 0. Ring 3 may do
//! port I/O because the TSS has a permission bitmap (an `iretq` with IOPL=3 would be
//! shorter, but not every hypervisor that runs ring 0 in software honours it). Where that is
//! refused all the same, ring 0 does it: QEMU's emulated processors hold a restored task
//! register, which is busy as it must be, for none.

use core::arch::global_asm;
use core::sync::atomic::AtomicU32;

/// One bit per interrupt source, set by the interrupt handlers and taken by
/// [`super::interrupts::take_wake`]. The `hlt` handler sleeps only while it is zero.
pub(crate) static WAKE: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" {
    /// The only page-directory-pointer table: the first 512 GiB.
    pub(crate) static mut boot_pdpt: [u64; 512];
    /// Page directories of the first 4 GiB.
    pub(crate) static mut boot_pd: [[u64; 512]; 4];
    /// Set to 1 by the stub when it gave the kvmclock MSR to the hypervisor.
    pub(crate) static kvmclock_enabled: u32;
    /// Linker symbol: the first byte after the image.
    pub(crate) static image_end: u8;
}

global_asm!(
    r#"
    .section .boot, "ax"
    .code64
    .global _start
_start:
    out     %al, $0x80                  # POST code: the monitor's "first instruction"
    cli
    mov     %cr4, %rax
    and     $~0x300000, %eax            # no SMEP, SMAP: ring 0 lives in user pages
    or      $0x600, %eax                # OSFXSR, OSXMMEXCPT: SSE in ring 3
    mov     %rax, %cr4
    mov     $0x80050033, %eax           # PG AM WP NE ET MP PE; no EM, no TS
    mov     %rax, %cr0
    mov     $boot_pml4, %eax
    mov     %rax, %cr3
    mov     $ring0_stack_end, %esp
    mov     $tss, %eax                  # a descriptor's base is in pieces
    mov     %ax, gdt_tss+2
    shr     $16, %eax
    mov     %al, gdt_tss+4
    mov     %ah, gdt_tss+7
    lgdt    gdt_pointer
    lidt    idt_pointer
    mov     $0x40, %eax
    ltr     %ax

    mov     $0x40000000, %eax           # a KVM, and does it offer kvmclock?
    cpuid
    cmp     $0x4b4d564b, %ebx
    jne     1f
    mov     $0x40000001, %eax
    cpuid
    test    $8, %al                     # KVM_FEATURE_CLOCKSOURCE2
    jz      1f
    mov     $0x4b564d01, %ecx           # MSR_KVM_SYSTEM_TIME_NEW
    mov     ${clock}, %eax
    or      $1, %eax
    xor     %edx, %edx
    wrmsr
    movl    $1, kvmclock_enabled
1:
    mov     %rsi, %rdi                  # boot_params
    pushq   $0x2b
    pushq   $ring3_stack_end - 8
    pushq   $0x202                      # interrupts on
    pushq   $0x33
    pushq   ${enter}
    iretq

    # Exceptions. Handlers without an error code push a zero in its place.
    .macro EXCEPTION vector
exception_\vector:
    .if (\vector == 8) || ((\vector >= 10) && (\vector <= 14)) || (\vector == 17) || (\vector == 21) || (\vector == 29) || (\vector == 30)
    .else
    pushq   $0
    .endif
    pushq   $\vector
    jmp     fatal_exception
    .endm
    .altmacro
    .set    i, 0
    .rept   32
    .if i != 13
    EXCEPTION %i
    .endif
    .set    i, i + 1
    .endr

    # Port I/O in ring 3 that was refused is done here.
    #
    # A general protection fault on `hlt` in ring 3 is the way to sleep. Interrupts
    # are off here, and `sti` keeps them off until `hlt` runs: an interrupt that
    # sets a bit in WAKE either came before the test or ends the `hlt`. Where a
    # processor is emulated it may come in between (below).
exception_13:
    push    %rax
    mov     16(%rsp), %rax
    cmpb    $0xee, (%rax)               # out %al, %dx
    je      3f
    cmpb    $0xec, (%rax)               # in %dx, %al
    je      4f
    cmpb    $0xf4, (%rax)               # hlt
    pop     %rax
    jne     1f
    add     $8, %rsp                    # the error code
    incq    (%rsp)                      # go on after the `hlt`
    cmpl    $0, {wake}
    jne     2f
    sti
asleep:
    hlt
2:  iretq
3:  pop     %rax
    out     %al, %dx
    jmp     5f
4:  pop     %rax
    in      %dx, %al
5:  add     $8, %rsp
    incq    (%rsp)
    iretq
1:  pushq   $13

    # Goes on in ring 3, where the exception is printed.
fatal_exception:
    popq    {fault}
    popq    {fault}+8
    mov     (%rsp), %rax
    mov     %rax, {fault}+16
    mov     8(%rsp), %rax
    mov     %rax, {fault}+24
    mov     24(%rsp), %rax
    mov     %rax, {fault}+32
    mov     %cr2, %rax
    mov     %rax, {fault}+40
    movq    ${report}, (%rsp)
    movq    $0x33, 8(%rsp)
    movq    $2, 16(%rsp)
    movq    $fault_stack_end - 8, 24(%rsp)
    movq    $0x2b, 32(%rsp)
    iretq

    .macro WAKE_HANDLER bit
wake_\bit:
    orl     $(1 << \bit), {wake}
    jmp     end_of_interrupt
    .endm
    .set    i, 0
    .rept   16
    WAKE_HANDLER %i
    .set    i, i + 1
    .endr
end_of_interrupt:
    push    %rax
    xor     %eax, %eax
    movabs  %eax, 0xfee000b0            # local APIC: EOI
    pop     %rax
    # QEMU's emulation of SVM forgets what `sti` has put off when it enters a guest
    # anew. Who is about to sleep then has missed this interrupt: don't.
    cmpq    $asleep, (%rsp)
    jne     ignore_0
    incq    (%rsp)
ignore_0:
    iretq

    .section .boot.data, "aw"
    .balign 4096
boot_pml4:
    .quad   boot_pdpt + 7
    .fill   511, 8, 0
    .global boot_pdpt
boot_pdpt:
    .quad   boot_pd + 7, boot_pd + 0x1007, boot_pd + 0x2007, boot_pd + 0x3007
    .fill   508, 8, 0
    .global boot_pd
boot_pd:
    .set    i, 0
    .rept   8                           # 16 MiB of RAM; ring 3 maps the rest
    .quad   (i << 21) + 0x87
    .set    i, i + 1
    .endr
    .fill   504 + 1024, 8, 0
    .set    i, 0xc0000000
    .rept   512                         # virtio-mmio, IOAPIC, local APIC: uncached
    .if (i == 0xd0000000) || (i == 0xfec00000) || (i == 0xfee00000)
    .quad   i + 0x9f
    .else
    .quad   0
    .endif
    .set    i, i + 0x200000
    .endr
    # Handlers are in the first 64 KiB from _start, which is at 0x200000.
    .macro  GATE name, number
    .word   \name\number - _start, 0x10, 0x8e00, 0x20
    .quad   0
    .endm
idt:
    .set    i, 0
    .rept   256
    .if i < 32
    GATE    exception_, %i
    .elseif (i >= 0x30) && (i < 0x40)
    GATE    wake_, %(i - 0x30)
    .else
    GATE    ignore_, 0
    .endif
    .set    i, i + 1
    .endr
    .noaltmacro
gdt:
    .quad   0, 0
    .quad   0x00af9b000000ffff          # 0x10: ring-0 code
    .quad   0x00cf93000000ffff          # 0x18: ring-0 data
    .quad   0
    .quad   0x00cff3000000ffff          # 0x2b: ring-3 data
    .quad   0x00affb000000ffff          # 0x33: ring-3 code
    .quad   0
gdt_tss:
    .quad   0x0000890000000168, 0       # 0x40: the TSS
gdt_pointer:
    .word   gdt_pointer - gdt - 1
    .quad   gdt
idt_pointer:
    .word   4095
    .quad   idt
    .balign 4096
tss:
    .long   0
    .quad   ring0_stack_end             # RSP0
    .fill   90, 1, 0
    .word   104                         # the I/O permission bitmap: all ports to 0x7ff
    .fill   256, 1, 0
    .byte   0xff
tss_end:
    .global kvmclock_enabled
    .balign 8
kvmclock_enabled:
    .long   0

    .section .bss.stacks, "aw", @nobits
    .balign 4096
    .skip   8192
ring0_stack_end:
    .skip   16384
fault_stack_end:
    .skip   262144
ring3_stack_end:
    .text
"#,
    clock = sym super::clock::KVMCLOCK,
    enter = sym crate::enter,
    fault = sym super::exceptions::FAULT,
    wake = sym WAKE,
    report = sym super::exceptions::report,
    options(att_syntax)
);
