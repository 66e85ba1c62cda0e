// Threads that call probed functions, once they are let go. usage: soak THREADS ROUNDS [sealed]
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>

__attribute__((noinline, noclone)) uint64_t probed(uint64_t a, uint64_t b) { __asm__ volatile("" : "+r"(a), "+r"(b)); return a + b; }
__attribute__((noinline, noclone)) uint64_t evented(uint64_t n) { __asm__ volatile("" : "+r"(n)); return n ^ 1; }
uint64_t stepped(uint64_t a, uint64_t b);
__asm__(".text\n.globl stepped\n.type stepped, @function\nstepped:\n"
	"push %rbp\nmov %rsp, %rbp\nlea 1(%rdi), %rax\nadd %rsi, %rax\npop %rbp\nret\n.size stepped, . - stepped\n");

static uint64_t rounds;

static void *work(void *sum)
{
	uint64_t s = 0;
	for (uint64_t i = 0; i < rounds; i++)
		s = evented(i) + stepped(probed(s, i), i);
	*(uint64_t *)sum = s;
	return 0;
}

int main(int argc, char **argv)
{
	pthread_t threads[64];
	uint64_t sums[64], sum = 0;
	int n = argc > 2 ? atoi(argv[1]) : 1;
	rounds = argc > 2 ? strtoull(argv[2], 0, 0) : 1;
	// PR_SET_MDWE; an old kernel does not know it.
	if (argc > 3)
		prctl(65, 1, 0, 0, 0);
	puts("ready");
	fflush(stdout);
	getchar();
	for (int i = 0; i < n; i++)
		pthread_create(&threads[i], 0, work, &sums[i]);
	for (int i = 0; i < n; i++) {
		pthread_join(threads[i], 0);
		sum += sums[i];
	}
	printf("%llx\n", (unsigned long long)sum);
	return 0;
}
