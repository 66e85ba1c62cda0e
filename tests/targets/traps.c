// Functions that no jump fits into, called in all the ways that a breakpoint may fail in.
// usage: traps THREADS CALLS_PER_THREAD [go] [WORD...]
//   go        wait for a line on standard input first
//   before    own SIGTRAP handler by sigaction before the wait (SA_SIGINFO); `signal` by signal() instead
//   after     own SIGTRAP handler after the wait; `resethand` with SA_RESETHAND, `onstack` on an alternate stack
//   mask      every signal blocked around the calls: before the wait, and again after it
//   timer     a timer whose handler blocks every signal and calls the functions, too
//   suspend   one more thread calls them from a handler inside of sigsuspend with all other signals blocked
//   fork      a forked child and a vfork'ed one call them as well
//   spawn     posix_spawn of /bin/true before and after
//   die       in the end run into a breakpoint of its own with the default action
//   ignore    in the end raise(SIGTRAP), ignored, then as `die`
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

// One byte; the next function follows at once.
void just_ret(void);
// Two bytes, then a branch back to the third.
uint64_t loops(uint64_t n);
// The branch, at loops+9, has only two bytes behind it.
__asm__(".text\n"
	".globl just_ret\n.type just_ret,@function\njust_ret: ret\n.size just_ret, 1\n"
	".globl after_ret\n.type after_ret,@function\nafter_ret: ret\n.size after_ret, 1\n"
	".globl loops\n.type loops,@function\n"
	"loops: push %rdi\n"
	"xor %eax, %eax\n"
	"1: add %rdi, %rax\n"
	"dec %rdi\n"
	"jnz 1b\n"
	"pop %rdi\n"
	"ret\n"
	".size loops, .-loops\n"
	".globl after_loops\n.type after_loops,@function\nafter_loops: ret\n.size after_loops, 1\n");

static long calls;
static int onstack;
static volatile sig_atomic_t traps_int3, traps_raised, alarms, suspended, other, off_stack;
static int masked, timing, with_suspend;
static char altstack[65536];

static void count(int code) {
	if (code == SI_KERNEL) traps_int3++;
	else if (code == SI_TKILL || code == SI_USER) traps_raised++;
	else other++;
}
static void on_trap_info(int sig, siginfo_t *info, void *context) {
	char here;
	(void)sig, (void)context;
	if (onstack && (&here < altstack || &here >= altstack + sizeof altstack)) off_stack++;
	count(info->si_code);
}
static volatile sig_atomic_t plain_traps;
static void on_trap(int sig) { plain_traps += sig == SIGTRAP; }

static uint64_t one(uint64_t i) {
	just_ret();
	return loops(i % 7 + 1);
}

static void on_alarm(int sig) {
	(void)sig;
	one(3);
	__atomic_fetch_add(&alarms, 1, __ATOMIC_RELAXED);
}
static void on_usr1(int sig) {
	(void)sig;
	one(3);
	suspended++;
}

static void *work(void *arg) {
	uint64_t sum = (uintptr_t)arg;
	sigset_t all, old;
	sigfillset(&all);
	for (long i = 0; i < calls; i++) {
		if (masked && i % 64 == 0) pthread_sigmask(SIG_BLOCK, &all, &old);
		sum = sum * 31 + one(i);
		if (masked && i % 64 == 63) pthread_sigmask(SIG_SETMASK, &old, NULL);
	}
	return (void *)(uintptr_t)sum;
}

static void *suspender(void *arg) {
	sigset_t block, rest;
	(void)arg;
	sigemptyset(&block);
	sigaddset(&block, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &block, NULL);
	sigfillset(&rest);
	sigdelset(&rest, SIGUSR1);
	while (suspended < 100) sigsuspend(&rest);
	return NULL;
}

static void install_info(int flags) {
	struct sigaction a = {.sa_sigaction = on_trap_info, .sa_flags = SA_SIGINFO | flags};
	sigaction(SIGTRAP, &a, NULL);
}

static void own_traps(void) {
	// With SIGTRAP blocked a breakpoint is the end of a program.
	if (masked) return;
	__asm__ volatile("int3");
	raise(SIGTRAP);
}

static void spawn(void) {
	extern char **environ;
	char *argv[] = {"true", NULL};
	pid_t pid;
	int status = -1;
	if (posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ) || waitpid(pid, &status, 0) != pid || status)
		printf("spawn failed %x\n", status);
}

int main(int argc, char **argv) {
	int threads = argc > 1 ? atoi(argv[1]) : 1, go = 0, before = 0, by_signal = 0, after = 0, flags = 0, forks = 0;
	int spawns = 0, die = 0, ignore = 0;
	calls = argc > 2 ? atol(argv[2]) : 1;
	for (int i = 3; i < argc; i++) {
		go |= !strcmp(argv[i], "go");
		before |= !strcmp(argv[i], "before");
		by_signal |= !strcmp(argv[i], "signal");
		after |= !strcmp(argv[i], "after");
		masked |= !strcmp(argv[i], "mask");
		timing |= !strcmp(argv[i], "timer");
		with_suspend |= !strcmp(argv[i], "suspend");
		forks |= !strcmp(argv[i], "fork");
		spawns |= !strcmp(argv[i], "spawn");
		die |= !strcmp(argv[i], "die");
		ignore |= !strcmp(argv[i], "ignore");
		if (!strcmp(argv[i], "resethand")) flags |= SA_RESETHAND;
		if (!strcmp(argv[i], "onstack")) flags |= SA_ONSTACK, onstack = 1;
	}
	setrlimit(RLIMIT_CORE, &(struct rlimit){0});
	if (onstack) sigaltstack(&(stack_t){.ss_sp = altstack, .ss_size = sizeof altstack}, NULL);
	if (before && by_signal) signal(SIGTRAP, on_trap);
	else if (before) install_info(flags);
	pthread_t tid[64], waiter;
	if (with_suspend) {
		struct sigaction a = {.sa_handler = on_usr1};
		sigfillset(&a.sa_mask);
		sigaction(SIGUSR1, &a, NULL);
		pthread_create(&waiter, NULL, suspender, NULL);
	}
	sigset_t all, none;
	sigfillset(&all);
	sigemptyset(&none);
	struct sigaction alarm_action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
	sigfillset(&alarm_action.sa_mask);
	if (timing) sigaction(SIGALRM, &alarm_action, NULL);
	if (masked) sigprocmask(SIG_BLOCK, &all, NULL);
	if (go) {
		puts("ready");
		fflush(stdout);
		char c;
		while (read(0, &c, 1) < 0 && errno == EINTR) {}
	}
	if (masked) one(1);
	struct sigaction was;
	if (after && by_signal) {
		if (signal(SIGTRAP, on_trap) != (before ? on_trap : SIG_DFL)) puts("wrong handler");
	} else if (after) {
		install_info(flags);
	}
	sigaction(SIGTRAP, NULL, &was);
	if ((before || after) && !by_signal && was.sa_sigaction != on_trap_info) puts("wrong action");
	if (timing) {
		sigaction(SIGALRM, &alarm_action, NULL);
		if (masked) {
			sigset_t alarm;
			sigemptyset(&alarm);
			sigaddset(&alarm, SIGALRM);
			sigprocmask(SIG_UNBLOCK, &alarm, NULL);
		}
		setitimer(ITIMER_REAL, &(struct itimerval){{0, 1000}, {0, 1000}}, NULL);
	}
	if (before || after) own_traps();
	if (spawns) spawn();
	uint64_t sum = 0;
	for (int i = 0; i < threads && i < 64; i++) pthread_create(&tid[i], NULL, work, (void *)(uintptr_t)(i + 1));
	if (with_suspend) {
		while (suspended < 100) {
			pthread_kill(waiter, SIGUSR1);
			usleep(200);
		}
		pthread_join(waiter, NULL);
	}
	for (int i = 0; i < threads && i < 64; i++) {
		void *r;
		pthread_join(tid[i], &r);
		sum ^= (uintptr_t)r;
	}
	if (timing) setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
	if (spawns) spawn();
	if (forks) {
		int status;
		pid_t child = fork();
		if (child == 0) {
			sigprocmask(SIG_BLOCK, &all, NULL);
			one(5);
			signal(SIGTRAP, SIG_IGN);
			_exit((int)one(3));
		}
		waitpid(child, &status, 0);
		printf("fork %x\n", status);
		child = vfork();
		if (child == 0) _exit((int)one(4));
		waitpid(child, &status, 0);
		printf("vfork %x\n", status);
	}
	if ((before || after) && !(flags & SA_RESETHAND)) own_traps();
	printf("int3 %d raised %d plain %d other %d off %d\n", (int)traps_int3, (int)traps_raised, (int)plain_traps,
	       (int)other, (int)off_stack);
	printf("extra %d\n", (int)(alarms + suspended));
	printf("checksum %llx\n", (unsigned long long)sum);
	fflush(stdout);
	if (ignore) {
		signal(SIGTRAP, SIG_IGN);
		raise(SIGTRAP);
		puts("ignored");
		fflush(stdout);
	}
	if (die || ignore) __asm__ volatile("int3");
	return 7;
}
