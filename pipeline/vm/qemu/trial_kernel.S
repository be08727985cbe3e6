# The smallest kernel that does on KVM what every other one does: run in 64-bit mode, for a while. QEMU loads it without
# changes, thanks to its Multiboot header; accel.py contains the result of
#
#   as trial_kernel.S -o trial_kernel.o && objcopy -O binary trial_kernel.o trial_kernel

.set start, 0x100000  # where all of this is loaded
.set tables, 0x201000
.set stack, 0x204000

.code32
header:  # with addresses in it, as this is no ELF file
  .long 0x1badb002, 0x10000, -(0x1badb002 + 0x10000)
  .long start, start, 0, 0, start + entry - header

entry:  # map the first 4 MiB to themselves; the memory of the tables is zero
  movl $tables + 0x1003, tables
  movl $tables + 0x2003, tables + 0x1000
  movl $0x83, tables + 0x2000
  movl $0x200083, tables + 0x2008
  movl $tables, %eax
  movl %eax, %cr3
  movl %cr4, %eax  # PAE, long mode, paging
  orl $0x20, %eax
  movl %eax, %cr4
  movl $0xc0000080, %ecx
  rdmsr
  orl $0x100, %eax
  wrmsr
  movl %cr0, %eax
  orl $0x80000000, %eax
  movl %eax, %cr0
  lgdt start + pointer - header
  ljmp $8, $(start + long - header)
segments:
  .quad 0, 0x00209a0000000000
pointer:
  .word 15
  .long start + segments - header

.code64
long:
  movl $stack, %esp
  movl $4000000, %ecx
again:
  push %rcx
  call work
  pop %rcx
  decl %ecx
  jnz again
  movw $0xe9, %dx  # the port of isa-debugcon; 0x402 is the firmware's
  movl $(start + told - header), %esi
  movl $(end - told), %ecx
  rep outsb
stop:
  hlt
  jmp stop
work:
  incl stack
  ret
told:
  .ascii "\nrun to the end\n"
end:
