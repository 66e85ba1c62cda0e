// No handler unwinds, and no forked child: libgcc before 13 holds a mutex while it looks for registered frames.
// Many things at once that programs do with stacks, signals and threads, each with a checksum.
// usage: torture ROUNDS [go]. Prints the same whether it is probed or not.
#include <atomic>
#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <pthread.h>
#include <stdexcept>
#include <string>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <spawn.h>
#include <ucontext.h>
#include <unistd.h>
#include <limits.h>

extern char **environ;

extern "C" __attribute__((noinline, noclone)) uint64_t leaf(uint64_t a, const char *text) {
	asm volatile("" : "+r"(a), "+r"(text));
	return a * 31 + (text ? text[0] : 1);
}

static long rounds;
static std::atomic<uint64_t> ticks;

// Everything that a handler may call, on whatever stack it is.
static void on_tick(int) {
	int saved = errno;
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	ticks += leaf(0, nullptr);
	char buffer[32];
	memcpy(buffer, "handler", 8);
	asm volatile("" ::"r"(buffer) : "memory");
	errno = saved;
}
static uint64_t memory(uint64_t seed) {
	uint64_t sum = 0;
	char *kept[16] = {};
	for (long i = 0; i < rounds * 20; i++) {
		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		size_t n = 8 + (seed >> 33) % 500;
		char *&p = kept[i % 16];
		if (p) {
			sum += strlen(p) * 3 + (unsigned char)p[0];
			free(p);
		}
		p = i & 1 ? (char *)malloc(n) : (char *)calloc(1, n);
		char text[512];
		memset(text, 'a' + i % 26, n - 1);
		text[n - 1] = 0;
		memcpy(p, text, n);
	}
	for (char *p : kept) free(p);
	return sum;
}

struct Loud {
	uint64_t &n;
	~Loud() { n += leaf(n, "x") & 1 ? 1 : 1; }
};
__attribute__((noinline)) static void throws(int depth, uint64_t &n) {
	Loud loud{n};
	if (depth == 0) throw std::runtime_error("thrown " + std::string(100, 'y'));
	throws(depth - 1, n);
	asm volatile("");
}
static uint64_t exceptions() {
	uint64_t n = 0;
	for (long i = 0; i < rounds; i++) {
		try {
			throws(i % 9, n);
		} catch (std::exception &e) {
			n += strlen(e.what());
		}
	}
	return n;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t guarded;
static void mutexes() {
	for (long i = 0; i < rounds * 10; i++) {
		pthread_mutex_lock(&lock);
		guarded++;
		pthread_mutex_unlock(&lock);
	}
}

static uint64_t pipes() {
	int fds[2];
	if (pipe(fds)) return 1;
	uint64_t sum = 0;
	for (long i = 0; i < rounds; i++) {
		uint64_t v = i, back = 0;
		if (write(fds[1], &v, 8) != 8 || read(fds[0], &back, 8) != 8) return 2;
		sum += back;
	}
	close(fds[0]);
	close(fds[1]);
	return sum;
}

// Jumps out of a handler that may have interrupted a program, on the plain and on the alternate stack.
static sigjmp_buf home;
static volatile sig_atomic_t armed;
static void on_jump(int) {
	if (armed) {
		armed = 0;
		siglongjmp(home, 1);
	}
}
__attribute__((noinline)) static uint64_t deep(int n) {
	volatile char room[400];
	room[0] = n;
	return n ? deep(n - 1) + room[0] : leaf(1, "j");
}
static void *jumps(void *) {
	char *stack = (char *)mmap(nullptr, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	stack_t alternate = {stack, 0, 65536};
	sigaltstack(&alternate, nullptr);
	timer_t timer;
	struct sigevent event = {};
	event.sigev_notify = SIGEV_THREAD_ID;
	event.sigev_signo = SIGUSR1;
	event._sigev_un._tid = gettid();
	timer_create(CLOCK_MONOTONIC, &event, &timer);
	volatile uint64_t n = 0;
	for (volatile long i = 0; i < rounds / 2; i++) {
		if (sigsetjmp(home, 1) == 0) {
			struct itimerspec t = {{0, 0}, {0, 50000 + (i * 7919) % 200000}};
			armed = 1;
			timer_settime(timer, 0, &t, nullptr);
			for (;;) n = n + (i % 3 ? deep(i % 5) : leaf(n, "k"));
		}
	}
	timer_delete(timer);
	alternate.ss_flags = SS_DISABLE;
	sigaltstack(&alternate, nullptr);
	munmap(stack, 65536);
	return nullptr;
}

// Coroutines on small stacks that lie side by side, switched by calls and, in the second half, by a signal handler.
static constexpr int FIBERS = 6;
static ucontext_t fibers[FIBERS];
static int current;
static volatile sig_atomic_t preempt;
static uint64_t fiber_sum[FIBERS];
static sigset_t preemption;
static void next() {
	int me = current;
	current = (current + 1) % FIBERS;
	swapcontext(&fibers[me], &fibers[current]);
}
static void yield() {
	sigset_t set, old;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &set, &old);
	next();
	pthread_sigmask(SIG_SETMASK, &old, nullptr);
}
static void on_preempt(int) {
	if (preempt) next();
}
static void fiber(int me) {
	pthread_sigmask(SIG_UNBLOCK, &preemption, nullptr);
	for (long i = 0; i < rounds * 4; i++) {
		uint64_t v = leaf(i, "f");
		if (v != uint64_t(i) * 31 + 'f') abort();
		fiber_sum[me] += v;
		if (i % 16 == me) yield();
	}
	for (;;) yield();
}
static void *coroutines(void *) {
	constexpr size_t SIZE = 64 << 10;
	char *stacks = (char *)mmap(nullptr, SIZE * FIBERS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	sigemptyset(&preemption);
	sigaddset(&preemption, SIGUSR2);
	// swapcontext sets the new mask while it is still on the old stack: a coroutine begins with the signal blocked.
	pthread_sigmask(SIG_BLOCK, &preemption, nullptr);
	for (int i = 1; i < FIBERS; i++) {
		getcontext(&fibers[i]);
		fibers[i].uc_stack = {stacks + SIZE * i, 0, SIZE};
		fibers[i].uc_link = nullptr;
		makecontext(&fibers[i], (void (*)())fiber, 1, i);
	}
	pthread_sigmask(SIG_UNBLOCK, &preemption, nullptr);
	timer_t timer;
	struct sigevent event = {};
	event.sigev_notify = SIGEV_THREAD_ID;
	event.sigev_signo = SIGUSR2;
	event._sigev_un._tid = gettid();
	timer_create(CLOCK_MONOTONIC, &event, &timer);
	struct itimerspec t = {{0, 200000}, {0, 200000}};
	timer_settime(timer, 0, &t, nullptr);
	preempt = 1;
	uint64_t sum = 0;
	for (long i = 0; i < rounds * 4; i++) {
		sum += leaf(i, "f");
		if (i % 16 == 0) yield();
	}
	for (int i = 1; i < FIBERS; i++) {
		uint64_t want = sum;
		while (__atomic_load_n(&fiber_sum[i], __ATOMIC_RELAXED) != want) yield();
	}
	preempt = 0;
	timer_delete(timer);
	return reinterpret_cast<void *>(sum);
}

// The smallest stacks there are, for threads and handlers.
static void *small(void *arg) {
	char *text = (char *)malloc(64);
	strcpy(text, "small");
	uint64_t n = leaf(uintptr_t(arg), text);
	free(text);
	return reinterpret_cast<void *>(n);
}
static uint64_t small_stacks() {
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, PTHREAD_STACK_MIN);
	uint64_t sum = 0;
	for (long i = 0; i < rounds / 20; i++) {
		pthread_t t;
		void *r;
		if (pthread_create(&t, &attr, small, reinterpret_cast<void *>(i))) return 1;
		pthread_join(t, &r);
		sum += uintptr_t(r);
	}
	return sum;
}
static void *cancelled(void *arg) {
	uint64_t n = 0;
	Loud loud{n};
	int fd = *static_cast<int *>(arg);
	char c;
	for (;;)
		if (read(fd, &c, 1) < 0) break;
	return nullptr;
}
static void *leaves(void *arg) {
	uint64_t n = 0;
	Loud loud{n};
	pthread_exit(arg);
}
static uint64_t endings() {
	uint64_t sum = 0;
	int fds[2];
	if (pipe(fds)) return 1;
	for (long i = 0; i < rounds / 20; i++) {
		pthread_t a, b;
		void *r;
		pthread_create(&a, nullptr, cancelled, &fds[0]);
		pthread_create(&b, nullptr, leaves, reinterpret_cast<void *>(i));
		pthread_cancel(a);
		pthread_join(a, &r);
		sum += r == PTHREAD_CANCELED;
		pthread_join(b, &r);
		sum += uintptr_t(r);
	}
	close(fds[0]);
	close(fds[1]);
	return sum;
}
static uint64_t children() {
	uint64_t sum = 0;
	for (long i = 0; i < rounds / 40; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			uint64_t n = 0;
			for (int k = 0; k < 50; k++) n += leaf(k, "c");
			_exit(n == 50 * 99 + 31 * 1225 ? 11 : 12);
		}
		int status = 0;
		while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
		sum += WIFEXITED(status) ? WEXITSTATUS(status) : 1000;
		char name[] = "true";
		char *argv[] = {name, nullptr};
		if (posix_spawn(&pid, "/bin/true", nullptr, nullptr, argv, environ) == 0) {
			while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
			sum += status == 0 ? 1 : 1000;
		}
	}
	return sum;
}

struct Result {
	uint64_t memory, exceptions, pipes;
};
static void *worker(void *arg) {
	Result *r = static_cast<Result *>(arg);
	r->memory = memory(7);
	r->exceptions = exceptions();
	r->pipes = pipes();
	mutexes();
	return nullptr;
}

int main(int argc, char **argv) {
	rounds = argc > 1 ? atol(argv[1]) : 1000;
	bool go = argc > 2 && !strcmp(argv[2], "go");
	setvbuf(stdout, nullptr, _IOLBF, 0);
	struct sigaction action = {};
	action.sa_flags = SA_RESTART;
	action.sa_handler = on_tick;
	sigaction(SIGALRM, &action, nullptr);
	action.sa_handler = on_preempt;
	sigaction(SIGUSR2, &action, nullptr);
	action.sa_handler = on_jump;
	action.sa_flags = SA_RESTART | SA_ONSTACK;
	sigaction(SIGUSR1, &action, nullptr);
	if (go) {
		puts("ready");
		if (getchar() == EOF) return 3;
	}
	struct itimerval every = {{0, 500}, {0, 500}};
	setitimer(ITIMER_REAL, &every, nullptr);
	Result results[3] = {};
	pthread_t threads[3], jumper, switcher;
	for (int i = 0; i < 3; i++) pthread_create(&threads[i], nullptr, worker, &results[i]);
	pthread_create(&jumper, nullptr, jumps, nullptr);
	pthread_create(&switcher, nullptr, coroutines, nullptr);
	uint64_t spawned = children(), ended = endings(), tiny = small_stacks();
	for (int i = 0; i < 3; i++) pthread_join(threads[i], nullptr);
	void *switched;
	pthread_join(jumper, nullptr);
	pthread_join(switcher, &switched);
	struct itimerval off = {};
	setitimer(ITIMER_REAL, &off, nullptr);
	for (Result &r : results)
		printf("memory %llx exceptions %llx pipes %llx\n", (unsigned long long)r.memory,
		       (unsigned long long)r.exceptions, (unsigned long long)r.pipes);
	printf("guarded %llu\n", (unsigned long long)guarded);
	printf("children %llu endings %llu small %llu coroutines %llx\n", (unsigned long long)spawned,
	       (unsigned long long)ended, (unsigned long long)tiny, (unsigned long long)uintptr_t(switched));
	printf("ticks %s\n", ticks > 0 ? "yes" : "no");
	return 9;
}
