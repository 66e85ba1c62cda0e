// Calls probed(), whose instructions are the same everywhere, and prints its address.
#include <stdint.h>
#include <stdio.h>

uint64_t probed(uint64_t a);
__asm__(".globl probed\n"
	".type probed, @function\n"
	"probed:\n"
	"	endbr64\n"             // +0
	"	lea 1(%rdi), %rax\n"   // +4
	"	add $2, %rax\n"        // +8
	"	mov %rax, %rdx\n"      // +12
	"	mov %rdx, %rax\n"      // +15
	"	add $3, %rax\n"        // +18
	"	ret\n"
	".size probed, . - probed\n");

int main(void) {
	uint64_t sum = 0;
	for (int i = 0; i < 10; i++) sum += probed(i);
	printf("%lu %lu\n", (unsigned long)(uintptr_t)probed, (unsigned long)sum);
}
