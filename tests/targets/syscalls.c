// Makes system calls of known results, which it prints at the end: number, and result or `-` where it is not to come. What comes
// between two calls of getppid in the main thread is listed. usage: syscalls [threads|children]
//   without     says `ready`, and waits in a read for a line first
//   threads     four threads, 1,000 calls of getppid each
//   children    forks, vforks, spawns; made children do what they are to do
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
extern char **environ;
static struct { int number; long result; } list[256];
static int count;
static long note(int number, long result) {
	int at = __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);
	list[at].number = number, list[at].result = result < 0 ? -errno : result;
	return result;
}
static int pipes[2];
static void asleep(int signal) { note(SYS_getuid, getuid()); }
static void waiting(int signal) { note(SYS_write, write(pipes[1], "x", 1)); }
static void on(int signal, void (*handler)(int), int flags) {
	struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
	sigaction(signal, &action, 0);
}
static void after(long us) {
	struct itimerval timer = {{0, 0}, {0, us}};
	note(SYS_setitimer, setitimer(ITIMER_REAL, &timer, 0));
}
static void *thread(void *arg) {
	for (int i = 0; i < 1000; i++) getppid();
	return 0;
}
static int child(void *arg) { return write(1, "cloned\n", 7) != 7; }
static int children(char *self) {
	int status, wrong = 0;
	pid_t p = fork();
	if (!p) _exit(getppid() == 1);
	waitpid(p, &status, 0), wrong |= status;
	for (int i = 0; i < 20; i++) {
		p = vfork();
		if (!p) execl("/bin/true", "true", NULL), _exit(9);
		waitpid(p, &status, 0), wrong |= status;
		char *args[] = {"true", 0};
		if (posix_spawn(&p, "/bin/true", 0, 0, args, environ)) wrong |= 2;
		waitpid(p, &status, 0), wrong |= status;
	}
	char *stack = malloc(65536);
	p = clone(child, stack + 65536, CLONE_VM | SIGCHLD, 0);
	waitpid(p, &status, 0), wrong |= status;
	printf("wrong %d\n", wrong);
	return 0;
}
int main(int argc, char **argv) {
	pthread_t t[4];
	if (argc > 1 && !strcmp(argv[1], "threads")) {
		for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, thread, 0);
		for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
		return 0;
	}
	if (argc > 1) return children(argv[0]);
	char text[64], line[64];
	struct timespec second = {1, 0};
	if (pipe(pipes)) return 1;
	int null = open("/dev/null", O_WRONLY);
	on(SIGALRM, asleep, 0);
	puts("ready"), fflush(stdout);
	if (read(0, line, sizeof line) <= 0) return 1;
	getppid();
	int fd = note(SYS_openat, open("/etc/passwd", O_RDONLY));
	note(SYS_read, read(fd, text, 10));
	note(SYS_lseek, lseek(fd, 3, SEEK_SET));
	note(SYS_pread64, pread(fd, text, 20, 5));
	note(SYS_close, close(fd));
	note(SYS_openat, open("/no/such/file", O_RDONLY));
	note(SYS_close, close(-1));
	note(SYS_write, write(null, text, 20));
	note(SYS_getpid, getpid());
	after(20000);
	int slept = count++;
	list[slept].number = SYS_clock_nanosleep, list[slept].result = -nanosleep(&second, 0) * -EINTR;
	on(SIGUSR1, waiting, SA_RESTART);
	note(SYS_rt_sigaction, 0);
	on(SIGALRM, waiting, SA_RESTART);
	note(SYS_rt_sigaction, 0);
	after(20000);
	int got = count++;
	list[got].number = SYS_read, list[got].result = read(pipes[0], text, 8);
	note(SYS_dup, dup(null));
	getppid();
	for (int i = 0; i < count; i++) printf("%d %ld\n", list[i].number, list[i].result);
	fflush(stdout);
	return 0;
}
