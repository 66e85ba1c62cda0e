// Calls `work` as often as each line of input says; each call passes a USDT probe, behind its semaphore.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

volatile uint16_t skep_work_semaphore __attribute__((section(".probes")));

__attribute__((noinline, noclone)) uint64_t work(uint64_t n)
{
	if (skep_work_semaphore)
		__asm__ volatile("990: nop\n"
				 ".pushsection .note.stapsdt,\"\",\"note\"\n"
				 ".balign 4\n"
				 ".4byte 992f-991f, 994f-993f, 3\n"
				 "991: .asciz \"stapsdt\"\n"
				 "992: .balign 4\n"
				 "993: .8byte 990b\n"
				 ".8byte _.stapsdt.base\n"
				 ".8byte skep_work_semaphore\n"
				 ".asciz \"skep\"\n"
				 ".asciz \"work\"\n"
				 ".asciz \"-8@%0 8@%1\"\n"
				 "994: .balign 4\n"
				 ".popsection\n"
				 ".pushsection .stapsdt.base,\"aG\",\"progbits\",.stapsdt.base,comdat\n"
				 ".weak _.stapsdt.base\n"
				 ".hidden _.stapsdt.base\n"
				 "_.stapsdt.base: .space 1\n"
				 ".size _.stapsdt.base, 1\n"
				 ".popsection\n" ::"r"(n), "i"(7));
	__asm__ volatile("" : "+r"(n));
	return n * 3;
}

int main(void)
{
	char line[64];

	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		uint64_t sum = 0;
		for (long i = 1, n = atol(line); i <= n; i++)
			sum += work(i);
		printf("%ju\n", (uintmax_t)sum);
	}
	return 0;
}
