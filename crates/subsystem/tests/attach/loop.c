/* Sits in calls that do not start again by themselves when a tracer stops the thread: none may fail with EINTR. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <time.h>
#include <unistd.h>

static volatile int stop;
static long failures, rounds;

__attribute__((noinline, noclone)) long visited(long x)
{
	asm volatile("" ::: "memory");
	return x + 1;
}

static void note(int result)
{
	if (result < 0 && errno == EINTR)
		__atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&rounds, visited(0), __ATOMIC_RELAXED);
}

static void *on_epoll(void *arg)
{
	struct epoll_event event;
	int fd = epoll_create1(0);
	while (!stop)
		note(epoll_wait(fd, &event, 1, 50));
	return arg;
}

static void *on_sem(void *arg)
{
	struct sembuf down = { 0, -1, 0 };
	struct timespec moment = { 0, 50000000 };
	int id = semget(IPC_PRIVATE, 1, 0600);
	while (!stop)
		note(semtimedop(id, &down, 1, &moment));
	semctl(id, 0, IPC_RMID);
	return arg;
}

static void *on_signal(void *arg)
{
	sigset_t set;
	struct timespec moment = { 0, 50000000 };
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &set, 0);
	while (!stop)
		note(sigtimedwait(&set, 0, &moment));
	return arg;
}

static void *on_sleep(void *arg)
{
	struct timespec moment = { 0, 50000000 };
	while (!stop)
		note(nanosleep(&moment, 0));
	return arg;
}

int main(void)
{
	char line[64];
	void *(*bodies[])(void *) = { on_epoll, on_sem, on_signal, on_sleep };
	pthread_t threads[4];
	setvbuf(stdout, 0, _IOLBF, 0);
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], 0, bodies[i], 0);
	puts("ready");
	while (fgets(line, sizeof line, stdin) && strcmp(line, "end\n"))
		;
	stop = 1;
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], 0);
	printf("failures %ld rounds %ld\n", failures, rounds);
	return 0;
}
