// Forks from several threads, to some depth, spawns and executes itself; each calls probed(). usage: forks CALLS [leaf|go]
//   leaf     only calls
//   go       waits for a line on standard input first
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <pthread.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
extern char **environ;
__attribute__((noinline, noclone)) unsigned long probed(unsigned long n, unsigned long k) {
	__asm__ volatile("" : "+r"(n), "+r"(k));
	return n * 3 + k;
}
__attribute__((noinline, noclone)) int forks(int depth) { __asm__ volatile("" : "+r"(depth)); return fork(); }
static int calls;
static int told(const char *what, int status) {
	if (status) printf("%s status %x\n", what, status), fflush(stdout);
	return status;
}
static void run(void) { for (int i = 0; i < calls; i++) probed(i, 1); }
static void *forker(void *arg) {
	int depth = (long)arg;
	for (int i = 0; i < 3; i++) {
		pid_t p = forks(depth);
		if (p == 0) {
			run();
			if (depth) forker((void *)(long)(depth - 1));
			_exit(0);
		}
		int status;
		waitpid(p, &status, 0);
		told("child", status);
	}
	run();
	return 0;
}
int main(int argc, char **argv) {
	calls = atoi(argv[1]);
	if (argc > 2 && !strcmp(argv[2], "leaf")) return run(), 0;
	if (argc > 2 && !strcmp(argv[2], "go")) puts("ready"), fflush(stdout), getchar();
	pthread_t t[4];
	for (long i = 0; i < 4; i++) pthread_create(&t[i], 0, forker, (void *)(i % 3));
	for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
	char *args[] = {argv[0], argv[1], "leaf", 0};
	for (int i = 0; i < 5; i++) {
		pid_t p;
		int status;
		posix_spawn(&p, argv[0], 0, 0, args, environ);
		waitpid(p, &status, 0);
		told("spawned", status);
	}
	pid_t p = fork();
	if (!p) execv(argv[0], args);
	int status;
	waitpid(p, &status, 0);
	told("executed", status);
	puts("done");
	return 6;
}
