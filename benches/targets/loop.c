// Times batches of calls. Reads lines from standard input: `entry`, `plain` run one batch of the function of that name and
// print the nanoseconds of one call; end of file ends it.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

__attribute__((noinline, noclone)) uint64_t probed(uint64_t a, uint64_t b) {
	__asm__ volatile("" : "+r"(a), "+r"(b));
	return a * 31 + b;
}
// A function that begins with `push %rbp`, which the kernel emulates: its cheap case.
__attribute__((noinline, noclone, optimize("no-omit-frame-pointer"))) uint64_t pushes(uint64_t a, uint64_t b) {
	__asm__ volatile("" : "+r"(a), "+r"(b));
	return a * 31 + b;
}

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(void) {
	char line[64];
	volatile uint64_t sink = 0;
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		uint64_t (*f)(uint64_t, uint64_t) = strncmp(line, "pushes", 6) ? probed : pushes;
		char *space = strchr(line, ' ');
		long n = space ? atol(space + 1) : 10000;
		uint64_t s = sink;
		for (long i = 0; i < n / 10; i++) s = f(s, i);
		double start = now();
		for (long i = 0; i < n; i++) s = f(s, i);
		double ns = (now() - start) / n;
		sink = s;
		printf("%.3f\n", ns);
		fflush(stdout);
	}
	return 0;
}
