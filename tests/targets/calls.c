// Calls probed() from several threads. usage: calls THREADS CALLS_PER_THREAD [go] [signals] [busy]
//   go       wait for a line on standard input first
//   signals  own SIGSEGV and SIGTRAP handlers (before and again after the wait), a sigaltstack, a 1 kHz timer
//   pace     a nanosleep after every 64 calls, so that the run takes a while and many threads leave others a processor
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t segvs, traps, alarms;
static int pace;
static long calls;

__attribute__((noinline, noclone)) uint64_t probed(uint64_t a, uint64_t b) {
	__asm__ volatile("" : "+r"(a), "+r"(b));
	return a * 31 + b;
}
__attribute__((noinline, noclone)) uint64_t in_handler(uint64_t a) {
	__asm__ volatile("" : "+r"(a));
	return a + 1;
}

static void on_segv(int sig) { (void)sig; segvs++; }
static void on_trap(int sig) { (void)sig; traps++; }
static void on_alarm(int sig) { (void)sig; alarms++; in_handler(1); }

static void install(void) {
	struct sigaction a = {.sa_handler = on_segv, .sa_flags = SA_ONSTACK};
	sigaction(SIGSEGV, &a, NULL);
	a.sa_handler = on_trap;
	sigaction(SIGTRAP, &a, NULL);
	a.sa_handler = on_alarm;
	a.sa_flags |= SA_RESTART;
	sigaction(SIGALRM, &a, NULL);
}

static void *work(void *arg) {
	uint64_t sum = (uintptr_t)arg;
	for (long i = 0; i < calls; i++) {
		sum = probed(sum, i);
		if (pace && i % 64 == 0) nanosleep(&(struct timespec){0, pace}, NULL);
	}
	return (void *)(uintptr_t)sum;
}

int main(int argc, char **argv) {
	int threads = argc > 1 ? atoi(argv[1]) : 1, go = 0, signals = 0;
	calls = argc > 2 ? atol(argv[2]) : 1;
	for (int i = 3; i < argc; i++) {
		go |= !strcmp(argv[i], "go");
		signals |= !strcmp(argv[i], "signals");
		if (!strcmp(argv[i], "pace")) pace = threads > 4 ? threads * 50000 : 100000;
	}
	if (signals) {
		stack_t ss = {.ss_sp = malloc(65536), .ss_size = 65536};
		sigaltstack(&ss, NULL);
		install();
	}
	if (go) {
		puts("ready");
		fflush(stdout);
		if (getchar() == EOF) return 3;
	}
	if (signals) {
		install();
		struct itimerval t = {{0, 1000}, {0, 1000}};
		setitimer(ITIMER_REAL, &t, NULL);
	}
	pthread_t tid[64];
	uint64_t sum = 0;
	for (int i = 0; i < threads && i < 64; i++) pthread_create(&tid[i], NULL, work, (void *)(uintptr_t)(i + 1));
	for (int i = 0; i < threads && i < 64; i++) {
		void *r;
		pthread_join(tid[i], &r);
		sum ^= (uintptr_t)r;
	}
	if (signals) {
		setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
		raise(SIGTRAP);
		raise(SIGSEGV);
		printf("segv %d trap %d alarms %s\n", (int)segvs, (int)traps, alarms ? "yes" : "no");
	}
	printf("checksum %llx\n", (unsigned long long)sum);
	return 7;
}
