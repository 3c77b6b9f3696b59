// SPDX-License-Identifier: MIT
#include "support/subprocess.hpp"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace vmem::test {
namespace {

class Pipe {
 public:
  Pipe() {
    if (pipe2(ends_.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe2");
  }
  ~Pipe() {
    close_read();
    close_write();
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  int read_end() const { return ends_[0]; }
  int write_end() const { return ends_[1]; }
  void close_read() { close_one(0); }
  void close_write() { close_one(1); }

 private:
  void close_one(std::size_t i) {
    if (ends_[i] >= 0) ::close(ends_[i]);
    ends_[i] = -1;
  }
  std::array<int, 2> ends_{-1, -1};
};

/// In the child: async-signal-safe calls only.
[[noreturn]] void start(const std::vector<char*>& argv, const std::vector<char*>& envp,
                        const RunOptions& options, int in, int out, int err, int failure) {
  int stdout_fd = out;
  if (!options.stdout_path.empty())
    stdout_fd = open(options.stdout_path.c_str(), O_WRONLY | O_CLOEXEC);
  // Another user may not reach the program's folder: it is opened before there is one.
  const int program = options.uid ? open(argv[0], O_PATH | O_CLOEXEC) : -1;
  bool good = stdout_fd >= 0 && dup2(in, 0) >= 0 && dup2(stdout_fd, 1) >= 0 && dup2(err, 2) >= 0;
  if (!options.directory.empty()) good = good && chdir(options.directory.c_str()) == 0;
  if (options.uid) {
    good = good && setgroups(0, nullptr) == 0 &&
           setresgid(*options.uid, *options.uid, *options.uid) == 0 &&
           setresuid(*options.uid, *options.uid, *options.uid) == 0;
  }
  signal(SIGPIPE, SIG_DFL);
  if (good && program >= 0) execveat(program, "", argv.data(), envp.data(), AT_EMPTY_PATH);
  if (good) execvpe(argv[0], argv.data(), envp.data());
  const int error = errno;
  (void)!write(failure, &error, sizeof error);
  _exit(127);
}

/// True at the end of the file.
bool drain(int fd, std::string& into) {
  std::array<char, 65536> buffer;
  const ssize_t n = read(fd, buffer.data(), buffer.size());
  if (n > 0) into.append(buffer.data(), static_cast<std::size_t>(n));
  return n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN);
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> list;
  list.reserve(strings.size() + 1);
  for (std::string& s : strings) list.push_back(s.data());
  list.push_back(nullptr);
  return list;
}

std::vector<std::string> environment_of(const RunOptions& options) {
  std::vector<std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    bool replaced = false;
    for (const std::string& own : options.environment) {
      replaced = replaced || text.starts_with(own.substr(0, own.find('=') + 1));
    }
    if (!replaced) all.emplace_back(text);
  }
  all.insert(all.end(), options.environment.begin(), options.environment.end());
  return all;
}

}  // namespace

std::string program_path(const char* name, const char* built) {
  const char* const named = std::getenv(name);
  return named != nullptr && *named != '\0' ? named : built;
}

RunResult run(const std::vector<std::string>& arguments, const RunOptions& options) {
  using Clock = std::chrono::steady_clock;
  Pipe in, out, err, failure;
  std::vector<std::string> argument_strings = arguments;
  std::vector<std::string> environment_strings = environment_of(options);
  const std::vector<char*> argv = pointers(argument_strings);
  const std::vector<char*> envp = pointers(environment_strings);
  if (options.stdout_closed_pipe) out.close_read();

  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("fork");
  if (child == 0) {
    start(argv, envp, options, in.read_end(), out.write_end(), err.write_end(),
          failure.write_end());
  }
  in.close_read();
  out.close_write();
  err.close_write();
  failure.close_write();

  RunResult result;
  const auto deadline = Clock::now() + options.timeout;
  std::size_t written = 0;
  // A child that does not read its input must not end this process.
  auto* const old_handler = std::signal(SIGPIPE, SIG_IGN);
  fcntl(in.write_end(), F_SETFL, O_NONBLOCK);
  while (out.read_end() >= 0 || err.read_end() >= 0) {
    if (in.write_end() >= 0 && written == options.input.size()) in.close_write();
    std::array<pollfd, 3> fds{
        {{out.read_end(), POLLIN, 0}, {err.read_end(), POLLIN, 0}, {in.write_end(), POLLOUT, 0}}};
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    if (left.count() <= 0) {
      result.timed_out = true;
      kill(child, SIGKILL);
      break;
    }
    if (poll(fds.data(), fds.size(), static_cast<int>(left.count())) < 0 && errno != EINTR) break;
    if (fds[0].revents != 0 && drain(out.read_end(), result.out)) out.close_read();
    if (fds[1].revents != 0 && drain(err.read_end(), result.err)) err.close_read();
    if (fds[2].revents != 0) {
      const ssize_t n =
          write(in.write_end(), options.input.data() + written, options.input.size() - written);
      if (n >= 0)
        written += static_cast<std::size_t>(n);
      else if (errno != EAGAIN && errno != EINTR)
        in.close_write();
    }
  }
  in.close_write();
  int error = 0;
  const bool not_started = read(failure.read_end(), &error, sizeof error) == sizeof error;
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  std::signal(SIGPIPE, old_handler);
  if (not_started)
    throw std::runtime_error("starting " + arguments[0] + ": " + std::strerror(error));
  if (WIFEXITED(status)) result.status = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  return result;
}

}  // namespace vmem::test
