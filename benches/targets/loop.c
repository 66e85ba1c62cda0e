// Times batches of calls. Reads lines from standard input: the name of a function below and a number of calls; makes one batch
// and prints the nanoseconds of one call. End of file ends it. Functions are in assembly: what they begin with matters.
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FUNCTION(name, ...)                                                                                            \
	uint64_t name(uint64_t, uint64_t);                                                                             \
	__asm__(".text\n.p2align 4\n.globl " #name "\n.type " #name ", @function\n" #name ":\n" __VA_ARGS__                \
		"ret\n.size " #name ", . - " #name "\n.byte 0xf4\n")

// Each gives a * 31 + b. The first begins with an instruction that the kernel single-steps: its dear case.
FUNCTION(probed, "mov %rdi, %rax\nshl $5, %rax\nsub %rdi, %rax\nadd %rsi, %rax\n");
// `push %rbp`, which it emulates.
FUNCTION(pushes, "push %rbp\nmov %rsp, %rbp\nmov %rdi, %rax\nshl $5, %rax\nsub %rdi, %rax\nadd %rsi, %rax\npop %rbp\n");
// Five bytes of nothing, which it replaces by a call.
FUNCTION(nops, ".byte 0x0f, 0x1f, 0x44, 0, 0\nmov %rdi, %rax\nshl $5, %rax\nsub %rdi, %rax\nadd %rsi, %rax\n");
// No jump fits in: three bytes, a `ret`, and what follows is not padding.
FUNCTION(tiny, "lea (%rdi), %rax\n");
// A breakpoint of its own.
FUNCTION(traps, "int3\nlea (%rdi), %rax\n");

// A system call that does next to nothing, by the C library.
static uint64_t parent(uint64_t a, uint64_t b) { return a + getppid() + b; }

static void on_trap(int signal) { (void)signal; }

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
		static const struct {
			const char *name;
			uint64_t (*f)(uint64_t, uint64_t);
		} all[] = {{"probed", probed}, {"pushes", pushes}, {"nops", nops}, {"tiny", tiny}, {"traps", traps},
			 {"parent", parent}};
		char *space = strchr(line, ' ');
		long n = space ? atol(space + 1) : 10000;
		uint64_t (*f)(uint64_t, uint64_t) = NULL;
		for (size_t i = 0; i < sizeof all / sizeof *all; i++)
			if (space && !strncmp(line, all[i].name, space - line) && !all[i].name[space - line]) f = all[i].f;
		if (!f) return 1;
		// Only who asks for it has a handler of its own.
		if (f == traps) signal(SIGTRAP, on_trap);
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
