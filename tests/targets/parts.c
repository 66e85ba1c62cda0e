// Functions with parts that stand elsewhere, as compilers make them, with all that their ways there may rely on.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

uint64_t flags(uint64_t n);
uint64_t table(uint64_t n);
// Its part needs the flags and the red zone of the other. `.cold` parts are functions by their symbols' types.
__asm__(".text\n"
	".globl flags\n"
	".type flags, @function\n"
	"flags:\n"
	"	.cfi_startproc\n"
	"	mov %rdi, -8(%rsp)\n"
	"	movq $1000, -16(%rsp)\n"
	"	cmp $5, %rdi\n"
	"	jb flags.cold\n"
	"	mov -8(%rsp), %rax\n"
	"	ret\n"
	"	.cfi_endproc\n"
	".size flags, . - flags\n"
	".section .text.unlikely,\"ax\",@progbits\n"
	".type flags.cold, @function\n"
	"flags.cold:\n"
	"	.cfi_startproc\n"
	"	setb %al\n"
	"	movzx %al, %eax\n"
	"	adc -8(%rsp), %rax\n"
	"	add -16(%rsp), %rax\n"
	"	ret\n"
	"	.cfi_endproc\n"
	".size flags.cold, . - flags.cold\n"
	".text\n");
// Nothing but a table leads to its part, and into the middle of what a jump would take.
__asm__(".globl table\n"
	".type table, @function\n"
	"table:\n"
	"	.cfi_startproc\n"
	"	push %rbx\n"
	"	.cfi_def_cfa_offset 16\n"
	"	.cfi_offset rbx, -16\n"
	"	and $3, %edi\n"
	"	lea .Ltable(%rip), %rdx\n"
	"	movslq (%rdx,%rdi,4), %rax\n"
	"	add %rdx, %rax\n"
	"	mov $7, %ebx\n"
	"	jmp *%rax\n"
	"	.cfi_endproc\n"
	".size table, . - table\n"
	".section .rodata\n"
	".align 4\n"
	".Ltable:\n"
	"	.long .L0-.Ltable, .L1-.Ltable, .L2-.Ltable, .L3-.Ltable\n"
	".section .text.unlikely,\"ax\",@progbits\n"
	".type table.cold, @function\n"
	"table.cold:\n"
	"	.cfi_startproc\n"
	"	.cfi_def_cfa_offset 16\n"
	"	.cfi_offset rbx, -16\n"
	".L0:	inc %ebx\n"     // +0
	".L1:	add %ebx, %ebx\n" // +2
	".L2:	inc %ebx\n"     // +4
	".L3:	add %ebx, %ebx\n" // +6
	"	mov %rbx, %rax\n" // +8
	"	pop %rbx\n"     // +11
	"	.cfi_def_cfa_offset 8\n"
	"	ret\n"
	"	.cfi_endproc\n"
	".size table.cold, . - table.cold\n"
	".text\n");

// Seen in `objdump` by its constant once its name is stripped.
static __attribute__((noinline, noclone)) uint64_t hidden(uint64_t n) {
	__asm__ volatile("" : "+r"(n));
	return n * 0x5bd1e995 + 0x1234567;
}

int main(int argc, char **argv) {
	uint64_t times = argc > 1 ? strtoull(argv[1], 0, 10) : 10, sum = 0;
	for (uint64_t i = 0; i < times; i++) sum = sum * 31 + flags(i % 10) + 3 * table(i) + 5 * hidden(i);
	printf("%lu\n", (unsigned long)sum);
}
