// Looks at its call chain while others do: in forked children (`fork`) or in a signal handler (`signal`); with `late` it does
// so for the first time after the wait, with `now` it does not wait. Prints `fine` or `stuck`. usage: looks fork|signal [late [now]]
#define _GNU_SOURCE
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile int stop;
static volatile long looks;

// Return probes at `probed` are active while it looks.
__attribute__((noinline, noclone)) uint64_t probed(uint64_t a, uint64_t b) {
	void *frames[16];
	uint64_t n = backtrace(frames, 16);
	__asm__ volatile("" : "+r"(n));
	return n + a + b;
}
static void *work(void *arg) {
	uint64_t sum = 0;
	while (!stop) sum += probed(sum, looks++);
	(void)arg;
	return (void *)(uintptr_t)sum;
}
static void on_alarm(int sig) { probed(sig, 1); }

static int children(void) {
	pthread_t threads[2];
	int stuck = 0;
	for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, work, NULL);
	for (int i = 0; i < 60 && !stuck; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			probed(i, 2);
			_exit(0);
		}
		for (int tries = 0; waitpid(pid, NULL, WNOHANG) == 0; tries++) {
			if (tries == 4000) {
				kill(pid, SIGKILL);
				waitpid(pid, NULL, 0);
				stuck = 1;
			}
			usleep(500);
			if (stuck) break;
		}
	}
	stop = 1;
	for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
	return stuck;
}

static int handlers(void) {
	struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
	pthread_t thread;
	pthread_create(&thread, NULL, work, NULL);
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &(struct itimerval){{0, 100}, {0, 100}}, NULL);
	long before = -1;
	for (int i = 0; i < 4; i++) {
		// Until a time: what is left of an interrupted sleep may never become nothing.
		struct timespec end;
		clock_gettime(CLOCK_MONOTONIC, &end);
		if ((end.tv_nsec += 500000000) >= 1000000000) end.tv_sec++, end.tv_nsec -= 1000000000;
		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL)) {}
		if (looks == before) return 1;
		before = looks;
	}
	return 0;
}

int main(int argc, char **argv) {
	if (argc < 2) return 2;
	if (argc < 3) probed(1, 1);
	puts("ready");
	fflush(stdout);
	if (argc < 4 && getchar() == EOF) return 3;
	int stuck = !strcmp(argv[1], "fork") ? children() : handlers();
	puts(stuck ? "stuck" : "fine");
	fflush(stdout);
	_exit(stuck);
}
