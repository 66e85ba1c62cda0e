/* Calls a function from several threads. Commands on stdin: "run THREADS CALLS" prints a checksum; "busy THREADS" lets
 * threads call on until "stop", which prints their number of calls; "pace THREADS": so, too, but with pauses; "end". */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

NOINLINE double probed(long x, double y)
{
	return x * y + 1;
}
extern __typeof(probed) alias __attribute__((alias("probed")));

NOINLINE long tiny(void)
{
	long seven = 7;
	asm volatile("" : "+r"(seven));
	return seven;
}

NOINLINE long deep(long n)
{
	long below = n ? deep(n - 1) : -1;
	asm volatile("" : "+r"(below));
	return below + 1;
}

/* Ten arguments, so that some are on the stack; and a struct returned in memory. */
struct big { long v[6]; };
NOINLINE struct big many(long a, long b, long c, long d, long e, long f, long g, long h, double i, long j)
{
	struct big r = { { a + b, c + d, e + f, g * h, (long)i, j } };
	return r;
}

/* Begins with a call: sub rsp,8; call tiny. */
NOINLINE long caller(void)
{
	return tiny() + 1;
}

/* A branch leads into its first bytes. */
long turning(long n);
asm(".type turning, @function\n"
    "turning: xor %eax, %eax\n"
    "1: dec %rdi\n"
    "   jg 1b\n"
    "   ret\n"
    ".size turning, . - turning\n");

static volatile int stop;
static volatile long ticks;
static long calls;
static int pause_us;

static void tick(int sig)
{
	ticks += (long)probed(sig, 1.0) != sig + 1;
}

static void *work(void *arg)
{
	double sum = 0;
	long n = (long)arg;
	for (long i = 0; i < n; i++) {
		sum += probed(i, 0.5);
		if (i % 16 == 0) {
			struct big b = many(1, 2, 3, 4, 5, 6, i, 2, 9.5, 10);
			if (b.v[0] != 3 || b.v[3] != 2 * i || b.v[4] != 9 || b.v[5] != 10)
				abort();
		}
	}
	double *out = malloc(sizeof *out);
	*out = sum;
	return out;
}

static void *busy(void *arg)
{
	long n = 0;
	while (!stop) {
		for (int i = 0; i < 100; i++)
			if (probed(i, 2) != 2 * i + 1 || tiny() != 7)
				abort();
		n += 100;
		if (arg)
			usleep(pause_us);
		if (n % 10000 == 0)
			free(malloc(n % 777));
	}
	__atomic_fetch_add(&calls, n, __ATOMIC_RELAXED);
	return arg;
}

int main(void)
{
	char line[128];
	pthread_t threads[64];
	int n = 0;
	long count = 0;
	setvbuf(stdout, 0, _IOLBF, 0);
	printf("ready %p %p\n", (void *)probed, (void *)tiny);
	while (fgets(line, sizeof line, stdin)) {
		if (sscanf(line, "run %d %ld", &n, &count) == 2) {
			double sum = 0;
			for (int i = 0; i < n; i++)
				pthread_create(&threads[i], 0, work, (void *)count);
			for (int i = 0; i < n; i++) {
				void *r;
				pthread_join(threads[i], &r);
				sum += *(double *)r;
			}
			printf("sum %.1f\n", sum);
		} else if (sscanf(line, "busy %d", &n) == 1 || sscanf(line, "pace %d", &n) == 1) {
			stop = 0;
			calls = 0;
			/* Many threads that pause briefly leave others no processor, and Linux lets them. */
			pause_us = n > 4 ? 50 * n : 300;
			for (int i = 0; i < n; i++)
				pthread_create(&threads[i], 0, busy, *line == 'p' ? line : 0);
			puts("busy");
		} else if (!strcmp(line, "stop\n")) {
			stop = 1;
			for (int i = 0; i < n; i++)
				pthread_join(threads[i], 0);
			printf("calls %ld\n", calls);
		} else if (!strcmp(line, "timer\n")) {
			struct sigaction action = { .sa_handler = tick, .sa_flags = SA_RESTART };
			struct itimerval every = { { 0, 1000 }, { 0, 1000 } };
			sigaction(SIGALRM, &action, 0);
			setitimer(ITIMER_REAL, &every, 0);
			puts("timer");
		} else if (sscanf(line, "deep %ld", &count) == 1) {
			printf("deep %ld\n", deep(count));
		} else if (sscanf(line, "alias %ld", &count) == 1) {
			volatile double sink;
			for (long i = 0; i < count; i++) {
				sink = alias(i, 1);
				if (caller() != 8)
					abort();
			}
			(void)sink;
			puts("alias");
		} else if (!strcmp(line, "fork\n")) {
			fflush(stdout);
			int pid = fork();
			if (!pid) {
				double sum = 0;
				for (int i = 0; i < 1000; i++)
					sum += probed(i, 1);
				_exit(sum == 500500 && deep(50) == 50 ? 9 : 1);
			}
			int status;
			waitpid(pid, &status, 0);
			printf("fork %d\n", WEXITSTATUS(status));
		} else if (!strcmp(line, "end\n")) {
			break;
		}
	}
	return ticks ? 1 : 5;
}
