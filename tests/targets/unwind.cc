// Ways to leave a function other than by returning. Prints the same whether it is probed or not.
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <execinfo.h>
#include <pthread.h>
#include <stdexcept>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

extern "C" {
static jmp_buf jump;
static int frames;
volatile int depth_reached;

// mode: 0 return, 1 throw, 2 longjmp, 3 backtrace, 4 pthread_exit, 5 recurse n
__attribute__((noinline, noclone)) uint64_t probed(uint64_t mode, uint64_t n);
}

__attribute__((noinline)) static uint64_t body(uint64_t mode, uint64_t n) {
	void *ips[64];
	switch (mode) {
	case 1: throw std::runtime_error("thrown");
	case 2: longjmp(jump, 1);
	case 3: frames = backtrace(ips, 64); break;
	case 4: pthread_exit(reinterpret_cast<void *>(n));
	case 5: if (n) return probed(5, n - 1) + 1;
	}
	return n;
}
extern "C" uint64_t probed(uint64_t mode, uint64_t n) {
	uint64_t r = body(mode, n);
	asm volatile("" : "+r"(r));
	return r;
}
__attribute__((noinline)) static int caught(uint64_t n) {
	try {
		uint64_t r = probed(1, n);
		asm volatile("" : "+r"(r));
		return 0;
	} catch (std::exception &e) {
		return strcmp(e.what(), "thrown") == 0;
	}
}
__attribute__((noinline)) static int through(uint64_t n) {
	int r = caught(n);
	asm volatile("" : "+r"(r));
	return r;
}
static void *leaves(void *arg) {
	probed(4, reinterpret_cast<uintptr_t>(arg));
	return nullptr;
}

static sigjmp_buf home;
static volatile sig_atomic_t armed, jumps;
static void on_alarm(int) {
	if (armed) {
		jumps++;
		siglongjmp(home, 1);
	}
}

int main(int argc, char **argv) {
	int go = 0, show_frames = 0;
	long rounds = 1000;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "go")) go = 1;
		else if (!strcmp(argv[i], "frames")) show_frames = 1;
		else if (!strcmp(argv[i], "again")) { puts("second image"); printf("%llu\n", (unsigned long long)probed(0, 9)); return 5; }
		else rounds = atol(argv[i]);
	}
	setvbuf(stdout, nullptr, _IOLBF, 0);
	if (go) {
		puts("ready");
		if (getchar() == EOF) return 3;
	}
	int sum = 0;
	for (long i = 0; i < rounds; i++) sum += caught(i) + through(i);
	printf("caught %d\n", sum);
	volatile int jumped = 0;
	for (volatile long i = 0; i < rounds; i++) {
		if (setjmp(jump)) jumped = jumped + 1;
		else probed(2, i);
	}
	printf("jumped %d\n", jumped);
	for (int i = 0; i < 20; i++)
		if (probed(5, 1000) != 1000) return 4;
	puts("recursed");
	probed(3, 0);
	if (show_frames) fprintf(stderr, "frames %d\n", frames);
	for (int i = 0; i < 50; i++) {
		pthread_t t;
		void *r;
		pthread_create(&t, nullptr, leaves, reinterpret_cast<void *>(uintptr_t(i)));
		pthread_join(t, &r);
		if (reinterpret_cast<uintptr_t>(r) != uintptr_t(i)) return 6;
	}
	puts("threads left");
	struct sigaction a = {};
	a.sa_handler = on_alarm;
	sigaction(SIGALRM, &a, nullptr);
	struct itimerval t = {{0, 500}, {0, 500}};
	setitimer(ITIMER_REAL, &t, nullptr);
	volatile long n = 0;
	for (volatile int i = 0; i < 200; i++) {
		if (sigsetjmp(home, 1) == 0) {
			armed = 1;
			for (;;) n = n + probed(0, 1);
		}
		armed = 0;
	}
	struct itimerval off = {};
	setitimer(ITIMER_REAL, &off, nullptr);
	printf("siglongjmps %s\n", jumps >= 200 ? "200 and more" : "too few");
	fflush(stdout);
	pid_t child = fork();
	if (child == 0) {
		uint64_t s = 0;
		for (int i = 0; i < 1000; i++) s += probed(0, i);
		printf("child %llu\n", (unsigned long long)s);
		fflush(stdout);
		_exit(caught(1) ? 11 : 12);
	}
	int status;
	waitpid(child, &status, 0);
	printf("child exit %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
	for (int i = 0; i < 500; i++) probed(0, i);
	fflush(stdout);
	execl("/proc/self/exe", argv[0], "again", nullptr);
	return 9;
}
