// Calls probed(pointer) with pointers that cannot be read: unmapped, PROT_NONE, and 4 bytes before an unmapped page.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
__attribute__((noinline, noclone)) uint64_t probed(const void *p, uint64_t kind) {
	__asm__ volatile("" : "+r"(p), "+r"(kind) : : "memory");
	return (uintptr_t)p * 31 + kind;
}
int main(int argc, char **argv) {
	long n = argc > 1 ? atol(argv[1]) : 1000;
	char *area = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(area, 0x5a, 3 * 4096);
	munmap(area + 4096, 4096);
	char *none = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (long i = 0; i < n; i++) {
		probed(area + 4096 + 64, 0);
		probed(none + 8, 1);
		probed(area + 4096 - 4, 2);
		probed(area + 16, 3);
	}
	puts("lived");
	return 0;
}
