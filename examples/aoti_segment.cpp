// Labels a photo with a model that AOTInductor compiled, by PyTorch's C++ libraries, without Python:
//
//     fgaseg export MODEL --to aoti --tile 384 --names names.txt --out exported
//     g++ -std=c++20 -O2 aoti_segment.cpp -o aoti_segment -I "$TORCH/include" -I "$STB" -L "$TORCH/lib"
//         -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10 -Wl,-rpath,"$TORCH/lib"                  (one line)
//     ./aoti_segment exported/whole.aoti.pt2 photo.jpg labels.pgm
//
// TORCH is the folder of the Python package torch, or of LibTorch, STB that of stb_image.h. A photo is resized to the
// square that the model was compiled for, and its class maps to the photo's size; labels.pgm has 16 bits a pixel.

#define STB_IMAGE_IMPLEMENTATION
#include <ATen/ATen.h>
#include <stb_image.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <limits>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>

void segment(const char* package, const char* photo_path, const char* labels_path) {
    c10::InferenceMode inference;
    if (!std::ifstream(package)) throw std::runtime_error(std::string(package) + ": cannot be read");
    torch::inductor::AOTIModelPackageLoader model(package);
    auto metadata = model.get_metadata();
    if (!metadata.count("tile_size")) throw std::runtime_error(std::string(package) + ": has no tile_size");
    int64_t side = std::stol(metadata.at("tile_size"));

    int height, width;
    std::unique_ptr<stbi_uc, decltype(&stbi_image_free)> colours(
        stbi_load(photo_path, &width, &height, nullptr, 3), stbi_image_free);
    if (!colours) throw std::runtime_error(std::string(photo_path) + ": cannot be read: " + stbi_failure_reason());
    auto photo = at::from_blob(colours.get(), {1, height, width, 3}, at::kByte).permute({0, 3, 1, 2});
    auto image = at::upsample_bilinear2d(photo.to(at::kFloat).div(255).contiguous(), {side, side}, false);
    auto maps = model.run({image}).at(0);  // probabilities [1, classes, side, side]

    // One class after the other, so that all maps at the photo's size are never in memory; ties keep the first class.
    auto best = at::full({1, 1, height, width}, -std::numeric_limits<float>::infinity());
    auto labels = at::zeros({1, 1, height, width}, at::kInt);
    std::stringstream first(metadata.at("fgaseg.first"));  // for every class the first that is equal to it
    for (int64_t name = 0; name < maps.size(1); name++) {
        std::string number;
        std::getline(first, number, ',');
        auto map = at::upsample_bilinear2d(maps.slice(1, name, name + 1).contiguous(), {height, width}, false);
        auto better = map > best;
        labels.masked_fill_(better, std::stol(number));
        best = at::where(better, map, best);
    }

    std::ofstream file(labels_path, std::ios::binary);
    file << "P5\n" << width << " " << height << "\n65535\n";
    const int* label = labels.const_data_ptr<int>();
    for (int64_t i = 0; i < labels.numel(); i++) file.put(char(label[i] >> 8)).put(char(label[i] & 255));
    if (!file.flush()) throw std::runtime_error(std::string(labels_path) + ": cannot be written");
}

int fail(std::string message) {
    std::replace(message.begin(), message.end(), '\n', ' ');
    std::cerr << "aoti_segment: " << message << "\n";
    return 1;
}

int main(int count, char** arguments) {
    if (count != 4) return fail("usage: aoti_segment whole.aoti.pt2 photo labels.pgm");
    try {
        segment(arguments[1], arguments[2], arguments[3]);
    } catch (const c10::Error& error) {
        return fail(std::string(arguments[1]) + ": " + error.what_without_backtrace());
    } catch (const std::exception& error) {
        return fail(error.what());
    }
}
