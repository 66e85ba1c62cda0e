// Calls probed() and scribbles over all memory that it may write, from several threads and in children that do not live
// long. usage: scribble MILLISECONDS [go]
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

__attribute__((noinline, noclone)) uint64_t probed(uint64_t a, uint64_t b) {
	__asm__ volatile("" : "+r"(a), "+r"(b));
	return a * 31 + b;
}

struct area {
	volatile uint64_t *at;
	size_t words;
	int shared;
};
static struct area areas[512];
static int count;
static volatile int stop;

static void find_areas(void) {
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512], perms[8];
	unsigned long from, to;
	for (count = 0; count < 512 && fgets(line, sizeof line, maps);)
		if (sscanf(line, "%lx-%lx %7s", &from, &to, perms) == 3 && perms[1] == 'w')
			areas[count++] = (struct area){(void *)from, (to - from) / 8, perms[3] == 's'};
	fclose(maps);
}

static uint64_t next(uint64_t *s) {
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

// What looks like an index, a length, a position, a lock, a process, a state.
static uint64_t word(uint64_t *s) {
	switch (next(s) % 9) {
	case 0: return 0;
	case 1: return ~0ull;
	case 2: return next(s) % 64;
	case 3: return (next(s) % 8192) & ~7ull;
	case 4: return 1ull << next(s) % 64;
	case 5: return next(s) % 64 | next(s) % 64 << 32;
	case 6: return (next(s) % 8 + 1) << 44 | next(s) % (1ull << 43);
	case 7: return getpid() | next(s) % 2 << 30;
	default: return next(s);
	}
}

// Writes for a while: only where all can see it, or everywhere, which nobody survives.
static void scribble(uint64_t seed, int everywhere, long writes) {
	for (uint64_t s = seed | 1; writes-- && !stop;) {
		struct area *a = &areas[next(&s) % count];
		if (!a->words || !(a->shared || everywhere)) continue;
		size_t near = next(&s) % 2 && a->words > 2048 ? 2048 : a->words;
		a->at[next(&s) % near] = word(&s);
		if (next(&s) % 4096 == 0) probed(s, 1);
	}
}

static void *thread(void *arg) {
	while (!stop) scribble((uintptr_t)arg * 0x9e3779b97f4a7c15ull, 0, 1 << 20);
	return NULL;
}

static void *caller(void *arg) {
	uint64_t sum = 0;
	while (!stop) sum += probed(sum, (uintptr_t)arg);
	return (void *)(uintptr_t)sum;
}

int main(int argc, char **argv) {
	long ms = argc > 1 ? atol(argv[1]) : 1000;
	if (argc > 2 && !strcmp(argv[2], "go")) {
		puts("ready");
		fflush(stdout);
		if (getchar() == EOF) return 3;
	}
	find_areas();
	pthread_t tid;
	struct timespec start, now;
	clock_gettime(CLOCK_MONOTONIC, &start);
	for (long i = 1; i <= 2; i++) pthread_create(&tid, NULL, thread, (void *)i);
	pthread_create(&tid, NULL, caller, NULL);
	for (uint64_t n = 1;; n++) {
		pid_t pid = fork();
		if (pid == 0) {
			alarm(1);
			find_areas();
			scribble(n * 0x2545f4914f6cdd1dull, 1, 1 << 18);
			_exit(0);
		}
		waitpid(pid, NULL, 0);
		clock_gettime(CLOCK_MONOTONIC, &now);
		if ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 >= ms) _exit(0);
	}
}
