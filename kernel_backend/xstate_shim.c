/* Lets User-Mode Linux of 6.1 and 6.12 run on processors whose register state is larger than it knows.
 *
 * It sets a task's extended registers from a buffer of fixed size (2696 bytes); a host whose state is larger
 * (AMX: 11008 bytes) refuses any size but its own with EFAULT. Preloaded, this completes the buffer with what the
 * task has. Nothing is lost: the guest's programs cannot use what their kernel does not know.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef NT_X86_XSTATE
#define NT_X86_XSTATE 0x202
#endif

static long set_completed(pid_t pid, const struct iovec *given)
{
	static unsigned char whole[65536]; /* not on the stack: a guest's kernel stack has 16 KiB */
	struct iovec all = { .iov_base = whole, .iov_len = sizeof(whole) };

	if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &all) < 0)
		return -1;
	memcpy(whole, given->iov_base, given->iov_len < all.iov_len ? given->iov_len : all.iov_len);
	return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &all);
}

long ptrace(enum __ptrace_request request, ...)
{
	static long (*next)(enum __ptrace_request, ...);
	va_list arguments;
	pid_t pid;
	void *address, *data;

	va_start(arguments, request);
	pid = va_arg(arguments, pid_t);
	address = va_arg(arguments, void *);
	data = va_arg(arguments, void *);
	va_end(arguments);
	if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE) {
		long result = syscall(SYS_ptrace, request, pid, address, data);

		if (result < 0 && errno == EFAULT)
			result = set_completed(pid, data);
		return result;
	}
	if (!next)
		next = (long (*)(enum __ptrace_request, ...))dlsym(RTLD_NEXT, "ptrace");
	return next(request, pid, address, data);
}
