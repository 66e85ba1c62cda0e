// A static binary whose function is traced.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
__attribute__((noinline, noclone)) uint64_t probed(uint64_t a, uint64_t b) { __asm__ volatile("" : "+r"(a), "+r"(b)); return a + b; }
int main(int argc, char **argv) {
	long n = argc > 1 ? atol(argv[1]) : 1000;
	uint64_t s = 0;
	for (long i = 0; i < n; i++) s = probed(s, i);
	printf("%llu\n", (unsigned long long)s);
	return 0;
}
