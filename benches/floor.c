/* The floor: runs a program a number of times, one after the other, with this
 * process's environment, the first and the last time with a mark in it.
 * By posix_spawn, or by vfork and execve. */
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static pid_t spawn(char **argv, char **env)
{
    pid_t pid;
#ifdef VFORK
    pid = vfork();
    if (pid == 0) {
        execve(argv[0], argv, env);
        _exit(127);
    }
#else
    if (posix_spawn(&pid, argv[0], NULL, NULL, argv, env) != 0)
        pid = -1;
#endif
    return pid;
}

/* floor TIMES PROG */
int main(int argc, char **argv)
{
    if (argc != 3)
        return 100;
    long times = atol(argv[1]);
    size_t n = 0;
    while (environ[n])
        n++;
    char **env = calloc(n + 2, sizeof *env);
    if (!env)
        return 111;
    memcpy(env, environ, n * sizeof *env);
    for (long i = 0; i < times; i++) {
        env[n] = i == 0 ? "MARK=first" : i == times - 1 ? "MARK=last" : NULL;
        int status;
        pid_t pid = spawn(argv + 2, env);
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
            return 111;
    }
    return 0;
}
