/* A stand-in for the agent: it counts hits in the shared arena and hands out return entries. Nothing else, so that what
 * fails in these tests is the attaching. Layouts: skep_runtime::session. */
typedef unsigned long u64;
typedef unsigned int u32;

struct control { u64 magic; u32 enable, nslots; u64 robust, size; u32 links, nlinks; };
struct link { u32 state, kind, prog, flags; u64 cookie, counts, cell; char arguments[16]; u32 call, more; };
struct proc {
	u64 magic; u32 index, pid; struct control *control; char *shared; void *maps; volatile u64 *alive;
	void *threads, *stacks; struct ret *rets; u64 stubs; u32 nthreads, nret; struct head *head;
	u32 fsgsbase, nsites; u64 sites;
};
struct site {
	struct proc *proc; u64 ip, body; u32 active, len; char original[16], patched[16]; u32 nlinks, reserved, links[16];
	u32 guard, entry; u64 on_entry, on_return;
};
struct ret { u64 ret, body, sp; struct site *site; u32 used, next; u64 reserved[3]; };
struct head { u64 free; u32 sweep, fresh; };
struct regs {
	u64 r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, rflags, rsp, ss;
};

enum { HITS = 0, MISSED = 3, ENTRY = 1, RETURN = 2 };

static void count(struct proc *p, u32 link, int which)
{
	u32 n = p->control->nslots;
	char *rows = p->shared + 4096 + n * 128ul;
	u64 *row = (u64 *)(rows + ((u64)link * (n + 1) + n) * 64);
	__atomic_fetch_add(&row[which], 1, __ATOMIC_RELAXED);
}

static int on(struct proc *p)
{
	return (p->control->enable & 0x3fffffff) && *p->alive == 1;
}

static void each(struct site *s, u32 kind, int which)
{
	struct link *links = (struct link *)((char *)s->proc->control + s->proc->control->links);
	for (u32 i = 0; i < s->nlinks && i < 16; i++)
		if (links[s->links[i]].kind == kind && links[s->links[i]].state)
			count(s->proc, s->links[i], which);
}

/* Programs at the entry see all registers here; without one only what a call may change is stored. */
static int seen(struct site *s)
{
	struct link *links = (struct link *)((char *)s->proc->control + s->proc->control->links);
	for (u32 i = 0; i < s->nlinks && i < 16; i++)
		if (links[s->links[i]].kind == ENTRY)
			return 1;
	return 0;
}

static void release(struct proc *p, u32 k)
{
	struct ret *r = &p->rets[k];
	u64 head = __atomic_load_n(&p->head->free, __ATOMIC_ACQUIRE), next;
	r->used = 0;
	do {
		r->next = (u32)head;
		next = ((head >> 32) + 1) << 32 | (k + 1);
	} while (!__atomic_compare_exchange_n(&p->head->free, &head, next, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
}

/* An entry whose stack slot no longer holds its stub was left by longjmp or an exception. */
static int stale(struct proc *p, u32 k, u64 sp)
{
	struct ret *r = &p->rets[k];
	return r->used && r->sp < sp && r->sp + 65536 > sp;
}

static int take(struct proc *p, u64 sp)
{
	u64 head = __atomic_load_n(&p->head->free, __ATOMIC_ACQUIRE);
	while ((u32)head) {
		u32 k = (u32)head - 1;
		u64 next = ((head >> 32) + 1) << 32 | p->rets[k].next;
		if (__atomic_compare_exchange_n(&p->head->free, &head, next, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
			return k;
	}
	u32 k = __atomic_load_n(&p->head->fresh, __ATOMIC_RELAXED);
	while (k < p->nret)
		if (__atomic_compare_exchange_n(&p->head->fresh, &k, k + 1, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
			return k;
	for (k = 0; k < p->nret; k++)
		if (stale(p, k, sp))
			return k;
	return -1;
}

u64 skep_hit(struct site *s, struct regs *regs)
{
	struct proc *p = s->proc;
	if (!on(p))
		return 0;
	if (seen(s) && (regs->rip != s->ip || regs->orig_rax != -1ul || regs->cs != 0x33 || regs->ss != 0x2b))
		__builtin_trap();
	each(s, ENTRY, HITS);
	/* What a careless agent would destroy. */
	asm volatile("pxor %%xmm0,%%xmm0; pxor %%xmm7,%%xmm7; pxor %%xmm15,%%xmm15; xor %%r10d,%%r10d; xor %%r11d,%%r11d"
		     ::: "xmm0", "xmm7", "xmm15", "r10", "r11");
	if (!s->on_return)
		return 0;
	int k = take(p, regs->rsp);
	if (k < 0) {
		each(s, RETURN, MISSED);
		return 0;
	}
	struct ret *r = &p->rets[k];
	r->ret = *(u64 *)regs->rsp;
	r->body = s->body;
	r->sp = regs->rsp;
	r->site = s;
	r->used = 1;
	return p->stubs + 16ul * k;
}

u64 skep_return(struct proc *p, u32 k, struct regs *regs)
{
	struct ret *r = &p->rets[k];
	u64 ret = r->ret;
	if (regs->rsp != r->sp + 8)
		__builtin_trap();
	if (on(p))
		each(r->site, RETURN, HITS);
	asm volatile("pxor %%xmm0,%%xmm0; pxor %%xmm1,%%xmm1" ::: "xmm0", "xmm1");
	release(p, k);
	return ret;
}
