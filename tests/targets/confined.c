// Puts itself under a seccomp filter after it has begun, as programs do that read what others wrote: `confined HOW`, where HOW is how
// (`prctl`, `syscall`, `strict`, `asks`: not at all). Says `ready`, and reads letters: `p` calls `probed` five times, `t` does so in a new thread, `c` is the
// filter, after which any system call but a few is deadly; each is answered by a line. The end of the input is the end.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ALLOW(n) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (n), 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static pthread_barrier_t start, stop;

__attribute__((noinline)) long probed(const char *text)
{
	__asm__ volatile("" ::: "memory");
	return strlen(text);
}

static long five(void)
{
	long sum = 0;

	for (int i = 0; i < 5; i++)
		sum += probed("twelve bytes");
	return sum;
}

static int confine(const char *how)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(SYS_read), ALLOW(SYS_write), ALLOW(SYS_exit), ALLOW(SYS_exit_group), ALLOW(SYS_futex),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog program = {sizeof(filter) / sizeof(*filter), filter};

	if (!strcmp(how, "strict"))
		return prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
	// Is there such a thing? (These cannot be; the second is how libseccomp asks.)
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 1, 0) == 0)
		return 1;
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, 0) == 0)
		return 1;
	if (!strcmp(how, "asks"))
		return 0;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return 1;
	if (!strcmp(how, "syscall"))
		return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static void *thread(void *unused)
{
	for (;;) {
		pthread_barrier_wait(&start);
		five();
		pthread_barrier_wait(&stop);
	}
	return unused;
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "prctl";
	int threads = strcmp(how, "strict") != 0;
	pthread_t other;
	char letter;

	pthread_barrier_init(&start, 0, 2);
	pthread_barrier_init(&stop, 0, 2);
	if (threads && pthread_create(&other, 0, thread, 0))
		return 2;
	write(1, "ready\n", 6);
	while (read(0, &letter, 1) == 1) {
		int failed = 0;

		if (letter == 'p') {
			failed = five() != 60;
		} else if (letter == 't' && threads) {
			pthread_barrier_wait(&start);
			pthread_barrier_wait(&stop);
		} else if (letter == 'c') {
			failed = confine(how);
		} else {
			continue;
		}
		write(1, failed ? "failed\n" : "done\n", failed ? 7 : 5);
	}
	// All that strict mode has.
	syscall(threads ? SYS_exit_group : SYS_exit, 5);
}
