// SPDX-License-Identifier: MIT
/// Other programs as targets: started with their input held open, watched until they say
/// something, killed at the end.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

namespace vmem::test {

class Program {
 public:
  explicit Program(const std::vector<std::string>& arguments,
                   const std::vector<std::string>& environment = {}) {
    std::array<int, 2> in{}, out{};
    if (pipe2(in.data(), O_CLOEXEC) != 0 || pipe2(out.data(), O_CLOEXEC) != 0)
      throw std::runtime_error("pipe2");
    std::vector<char*> argv;
    for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      dup2(in[0], 0);
      dup2(out[1], 1);
      dup2(out[1], 2);
      for (const std::string& e : environment) putenv(const_cast<char*>(e.c_str()));
      execvp(argv[0], argv.data());
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    stdin_ = in[1];
    stdout_ = out[0];
    if (pid_ < 0) throw std::runtime_error("fork");
  }
  ~Program() { end(); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  pid_t pid() const { return pid_; }
  const std::string& said() const { return said_; }

  /// False: it ended, or was silent for too long.
  bool wait_for(const std::string& text, std::chrono::seconds most = std::chrono::seconds(60)) {
    const auto deadline = std::chrono::steady_clock::now() + most;
    while (said_.find(text) == std::string::npos) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      pollfd ready{stdout_, POLLIN, 0};
      if (poll(&ready, 1, 200) <= 0) continue;
      std::array<char, 4096> buffer{};
      const ssize_t n = read(stdout_, buffer.data(), buffer.size());
      if (n <= 0) return said_.find(text) != std::string::npos;
      said_.append(buffer.data(), static_cast<std::size_t>(n));
    }
    return true;
  }

  void say(const std::string& text) const { (void)!write(stdin_, text.data(), text.size()); }

  void kill_hard() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    (void)waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  void end() {
    close(stdin_);
    kill_hard();
    close(stdout_);
  }

  pid_t pid_ = -1;
  int stdin_ = -1, stdout_ = -1;
  std::string said_;
};

}  // namespace vmem::test
