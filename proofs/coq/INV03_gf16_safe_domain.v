(** INV-3: GF16 as a format of Flocq: ten significant bits, least number 2^-39, rounded to nearest, ties to even. Its
    rounding errors, for every real number; the codec on exact rationals as it runs; and the value of every finite code,
    which is a number of the format. That `encode` is this rounding: INV03_gf16_encode.v. *)
(* uses: Flocq *)

Require Import Reals Lra Lia ZArith QArith Qabs Qreals.
From Flocq Require Import Core Relative.
From Karat Require Constants.
Local Open Scope Z_scope.

Ltac Zify.zify_post_hook ::= Z.to_euclidean_division_equations.

(** -- the codec on exact numbers -- *)

Definition infinity_code : Z := 32256.

(** 2^k as a rational, for k of either sign. *)
Definition two_to (k : Z) : Q := if 0 <=? k then inject_Z (2 ^ k) else 1 # Z.to_pos (2 ^ - k).

(** The number with a code that is finite. *)
Definition decode (code : Z) : Q :=
  let sign := Z.shiftr code 15 in
  let exponent := Z.land (Z.shiftr code 9) 63 in
  let fraction := Z.land code 511 in
  let magnitude := if exponent =? 0 then ((fraction # 512) * two_to (-30))%Q
                   else (two_to (exponent - 31) * (1 + (fraction # 512)))%Q in
  if sign =? 0 then magnitude else Qopp magnitude.

Definition bit_length (n : Z) : Z := if n =? 0 then 0 else Z.log2 n + 1.

Definition floor_log2 (x : Q) : Z := bit_length (Z.shiftl (Qnum x) 200 / QDen x) - 201.

(** The nearest integer, ties to even. *)
Definition nearest_even (x : Q) : Z :=
  let floor := Qnum x / QDen x in
  let rest := Qnum x mod QDen x in
  match 2 * rest ?= QDen x with
  | Lt => floor
  | Gt => floor + 1
  | Eq => if Z.even floor then floor else floor + 1
  end.

(** The code of the number nearest to a rational, ties to even. *)
Definition encode (value : Q) : Z :=
  let sign := if Qle_bool 0 value then 0 else 32768 in
  let magnitude := Qabs value in
  let exponent := Z.max (-30) (floor_log2 magnitude) in
  let units := nearest_even (magnitude * two_to (9 - exponent))%Q in
  Z.lor sign (Z.min (units + Z.shiftl (exponent + 30) 9) infinity_code).

(** A code with exponent field below 63, of either sign. *)
Definition finite (code : Z) : Prop := 0 <= code < infinity_code \/ 32768 <= code < 32768 + infinity_code.

(** -- the format and its rounding -- *)

Local Open Scope R_scope.

Definition exponent_of : Z -> Z := FLT_exp (-39) 10.
Definition gf16 (x : R) : Prop := generic_format radix2 exponent_of x.
Definition rounded (x : R) : R := round radix2 exponent_of ZnearestE x.
Definition largest : R := 2 ^ 31 * (2 - / 2 ^ 9).
Definition overflow : R := 2 ^ 31 * (2 - / 2 ^ 10).

Local Instance precision : Prec_gt_0 10.
Proof. reflexivity. Qed.

Local Instance valid : Valid_exp exponent_of.
Proof. apply FLT_exp_valid. exact precision. Qed.

Local Notation two := (bpow radix2).

Lemma two_pow (n : nat) : two (Z.of_nat n) = 2 ^ n.
Proof. rewrite <- IZR_Zpower by lia. rewrite pow_IZR. reflexivity. Qed.

Lemma two_inv (n : nat) : two (- Z.of_nat n) = / 2 ^ n.
Proof. rewrite bpow_opp, two_pow. reflexivity. Qed.

(** Relative error at most 2^-10 from the least normal number on. *)
Theorem relative_error : forall x : R, / 2 ^ 30 <= Rabs x -> Rabs (rounded x - x) <= / 2 ^ 10 * Rabs x.
Proof.
  intros x Hx. rewrite <- (two_inv 30) in Hx.
  replace (/ 2 ^ 10) with (/ 2 * two (-10 + 1)); [apply relative_error_N_FLT; [reflexivity | exact Hx]|].
  change (-10 + 1)%Z with (- Z.of_nat 9)%Z. rewrite two_inv. field.
Qed.

Lemma relative_error_satisfiable : exists x : R, / 2 ^ 30 <= Rabs x.
Proof. exists 1. rewrite Rabs_R1. lra. Qed.

(** Absolute error at most 2^-40 below it, and up to twice it. *)
Theorem absolute_error : forall x : R, Rabs x < / 2 ^ 29 -> Rabs (rounded x - x) <= / 2 ^ 40.
Proof.
  intros x Hx. rewrite <- (two_inv 29) in Hx.
  replace (/ 2 ^ 40) with (/ 2 * ulp radix2 exponent_of x); [apply error_le_half_ulp; exact valid|].
  unfold exponent_of. rewrite ulp_FLT_small by (exact precision || exact Hx).
  change (-39)%Z with (- Z.of_nat 39)%Z. rewrite two_inv. field.
Qed.

Lemma absolute_error_satisfiable : exists x : R, Rabs x < / 2 ^ 29.
Proof. exists (/ 2 ^ 31). rewrite Rabs_right; lra. Qed.

Theorem monotone : forall x y : R, x <= y -> rounded x <= rounded y.
Proof. intros. apply round_le; [exact valid | apply valid_rnd_N | assumption]. Qed.

Lemma monotone_satisfiable : exists x y : R, x <= y.
Proof. exists 1, 2. lra. Qed.

(** Rounding changes a number iff it is not of the format. *)
Theorem fixed_iff_in_format : forall x : R, gf16 x <-> rounded x = x.
Proof.
  intro x. split; intro H; [apply round_generic; [apply valid_rnd_N | exact H]|].
  rewrite <- H. apply generic_format_round; [exact valid | apply valid_rnd_N].
Qed.

Theorem idempotent : forall x : R, rounded (rounded x) = rounded x.
Proof. intro x. apply fixed_iff_in_format. apply generic_format_round; [exact valid | apply valid_rnd_N]. Qed.

Theorem odd : forall x : R, rounded (- x) = - rounded x.
Proof. intro x. apply round_NE_opp. Qed.

Lemma in_format (m e : Z) : (Z.abs m < 1024)%Z -> (-39 <= e)%Z -> gf16 (IZR m * two e).
Proof. intros Hm He. apply generic_format_FLT. exists (Float radix2 m e); [reflexivity | exact Hm | exact He]. Qed.

Theorem largest_in_format : gf16 largest.
Proof.
  replace largest with (IZR 1023 * two (Z.of_nat 22)) by (rewrite two_pow; unfold largest; field).
  apply in_format; simpl; lia.
Qed.

Lemma two_32_in_format : gf16 (2 ^ 32).
Proof.
  replace (2 ^ 32) with (IZR 1 * two (Z.of_nat 32)) by (rewrite two_pow; ring). apply in_format; simpl; lia.
Qed.

(** What is at most the largest number rounds to at most that. *)
Theorem stays_in_range : forall x : R, Rabs x <= largest -> Rabs (rounded x) <= largest.
Proof.
  intros. apply abs_round_le_generic; [exact valid | apply valid_rnd_N | apply largest_in_format | assumption].
Qed.

Lemma stays_in_range_satisfiable : exists x : R, Rabs x <= largest.
Proof. exists 3. rewrite Rabs_right by lra. unfold largest. lra. Qed.

(** The constants of the core are the ends of the format: the largest number, where infinity begins, the least normal
    number and the largest relative error. *)
Theorem constants : infinity_code = Constants.gf16_infinity_code /\ Q2R Constants.gf16_max_finite = largest /\
  Q2R Constants.gf16_overflow = overflow /\ Q2R Constants.gf16_min_normal = / 2 ^ 30 /\
  Q2R Constants.gf16_unit_roundoff = / 2 ^ 10.
Proof. repeat split; unfold Q2R, largest, overflow; simpl; field. Qed.

(** -- rounding within a binade -- *)

Lemma rounded_binade (x : R) (e : Z) : (-30 <= e)%Z -> (two e <= Rabs x \/ e = (-30)%Z) -> Rabs x < two (e + 1) ->
  rounded x = IZR (ZnearestE (x * two (9 - e))) * two (e - 9).
Proof.
  intros He Low High. destruct (Req_dec x 0) as [->|N].
  - rewrite Rmult_0_l. unfold rounded. rewrite round_0 by apply valid_rnd_N.
    rewrite Zrnd_IZR by apply valid_rnd_N. ring.
  - assert (C : cexp radix2 exponent_of x = (e - 9)%Z).
    { unfold cexp, exponent_of, FLT_exp. pose proof (mag_le_bpow radix2 x (e + 1) N High). destruct Low as [Low|Low].
      - rewrite (mag_unique radix2 x (e + 1)); [lia|]. replace (e + 1 - 1)%Z with e by ring. auto.
      - lia. }
    unfold rounded, round, scaled_mantissa, F2R. simpl. rewrite C.
    replace (- (e - 9))%Z with (9 - e)%Z by ring. reflexivity.
Qed.

Lemma Q2R_inject (z : Z) : Q2R (inject_Z z) = IZR z.
Proof. unfold Q2R. simpl. field. Qed.

Lemma Q2R_two_to (k : Z) : Q2R (two_to k) = two k.
Proof.
  unfold two_to. destruct (Z.leb_spec 0 k) as [H|H].
  - rewrite Q2R_inject. apply (IZR_Zpower radix2). exact H.
  - unfold Q2R. simpl Qnum. simpl Qden. assert (0 < 2 ^ - k)%Z by (apply Z.pow_pos_nonneg; lia).
    rewrite Z2Pos.id by assumption. rewrite Rmult_1_l. rewrite (IZR_Zpower radix2) by lia.
    rewrite <- bpow_opp. f_equal. ring.
Qed.

Lemma Q2R_division (x : Q) : Q2R x = IZR (Qnum x) / IZR (QDen x).
Proof. reflexivity. Qed.

Lemma Q2R_Qabs (x : Q) : Q2R (Qabs x) = Rabs (Q2R x).
Proof.
  destruct x as [n d]. unfold Q2R. simpl. rewrite abs_IZR, Rabs_mult. f_equal.
  symmetry. apply Rabs_right. apply Rle_ge, Rlt_le, Rinv_0_lt_compat, IZR_lt. reflexivity.
Qed.

(** The running rounding to an integer is Flocq's. *)
Theorem nearest_even_is : forall x : Q, nearest_even x = ZnearestE (Q2R x).
Proof.
  intros [n d]. unfold nearest_even, Znearest. rewrite Q2R_division. simpl Qnum. simpl Qden.
  rewrite Zfloor_div by discriminate. set (floor := (n / Z.pos d)%Z). set (rest := (n mod Z.pos d)%Z).
  assert (D : 0 < IZR (Z.pos d)) by (apply IZR_lt; reflexivity).
  assert (E : IZR n / IZR (Z.pos d) - IZR floor = IZR rest / IZR (Z.pos d)).
  { rewrite (Z_div_mod_eq_full n (Z.pos d)) at 1. fold floor rest. rewrite plus_IZR, mult_IZR. field. lra. }
  assert (U : rest <> 0%Z -> Zceil (IZR n / IZR (Z.pos d)) = (floor + 1)%Z).
  { intro N. rewrite Zceil_floor_neq; rewrite Zfloor_div by discriminate; fold floor; [reflexivity|].
    intro A. apply N, eq_IZR. apply Rmult_eq_reg_r with (/ IZR (Z.pos d)); [|apply Rinv_neq_0_compat; lra].
    change (IZR rest / IZR (Z.pos d) = 0 * / IZR (Z.pos d)). lra. }
  rewrite E. assert (S : forall a b : R, (a < b -> a / IZR (Z.pos d) < b / IZR (Z.pos d))).
  { intros a b H. apply Rmult_lt_compat_r; [apply Rinv_0_lt_compat; exact D | exact H]. }
  assert (H2 : / 2 = (IZR (Z.pos d) / 2) / IZR (Z.pos d)) by (field; lra). rewrite H2.
  destruct (Z.compare_spec (2 * rest) (Z.pos d)) as [H|H|H].
  - apply (f_equal IZR) in H. rewrite mult_IZR in H. rewrite Rcompare_Eq by (f_equal; lra).
    destruct (Z.even floor); simpl; [reflexivity|]. symmetry. apply U. intros ->. lra.
  - apply IZR_lt in H. rewrite mult_IZR in H. rewrite Rcompare_Lt; [reflexivity | apply S; lra].
  - assert (rest <> 0)%Z by lia. apply IZR_lt in H. rewrite mult_IZR in H.
    rewrite Rcompare_Gt; [symmetry; apply U; assumption | apply S; lra].
Qed.

Lemma floor_log2_spec (m : Q) : (0 <= Qnum m)%Z ->
  Q2R m < two (floor_log2 m + 1) /\ ((-200 <= floor_log2 m)%Z -> two (floor_log2 m) <= Q2R m).
Proof.
  intro Hm. unfold floor_log2. set (n := (Z.shiftl (Qnum m) 200 / QDen m)%Z).
  assert (D : 0 < IZR (QDen m)) by (apply IZR_lt; reflexivity).
  assert (B : IZR n <= Q2R m * two 200 < IZR n + 1).
  { assert (E : Q2R m * two 200 = IZR (Z.shiftl (Qnum m) 200) / IZR (QDen m)).
    { rewrite Z.shiftl_mul_pow2 by lia. rewrite mult_IZR, Q2R_division, <- (IZR_Zpower radix2) by lia.
      change (radix_val radix2 ^ 200)%Z with (2 ^ 200)%Z. field. lra. }
    rewrite E. pose proof (Zfloor_lb (IZR (Z.shiftl (Qnum m) 200) / IZR (QDen m))) as A.
    pose proof (Zfloor_ub (IZR (Z.shiftl (Qnum m) 200) / IZR (QDen m))) as C.
    rewrite Zfloor_div in A, C by discriminate. fold n in A, C. lra. }
  assert (N : (0 <= n)%Z) by (apply Z.div_pos; [apply Z.shiftl_nonneg; exact Hm | reflexivity]).
  clearbody n. unfold bit_length. pose proof (bpow_gt_0 radix2 200) as P. destruct (Z.eqb_spec n 0) as [->|Z0].
  - split; [|lia]. apply Rmult_lt_reg_r with (two 200); [exact P|]. rewrite <- bpow_plus. simpl (two (_ + _)). lra.
  - pose proof (Z.log2_spec n ltac:(lia)) as [L1 L2]. pose proof (Z.log2_nonneg n). split.
    + apply Rmult_lt_reg_r with (two 200); [exact P|]. rewrite <- bpow_plus.
      replace (Z.log2 n + 1 - 201 + 1 + 200)%Z with (Z.log2 n + 1)%Z by ring.
      rewrite <- (IZR_Zpower radix2 (Z.log2 n + 1)) by lia.
      apply Rlt_le_trans with (IZR n + 1); [apply B|]. rewrite <- (plus_IZR n 1). apply IZR_le.
      change (radix_val radix2) with 2%Z. unfold Z.succ in L2. lia.
    + intros _. apply Rmult_le_reg_r with (two 200); [exact P|]. rewrite <- bpow_plus.
      replace (Z.log2 n + 1 - 201 + 200)%Z with (Z.log2 n) by ring. rewrite <- (IZR_Zpower radix2 (Z.log2 n)) by lia.
      apply Rle_trans with (IZR n); [|apply B]. apply IZR_le. exact L1.
Qed.

(** -- codes without sign -- *)

Lemma decode_value (code : Z) : (0 <= code < infinity_code)%Z ->
  Q2R (decode code) =
  IZR (if (code <? 512)%Z then code else 512 + code mod 512) * two (Z.max 1 (code / 512) - 40).
Proof.
  unfold infinity_code. intro H. unfold decode. rewrite !Z.shiftr_div_pow2 by lia.
  change 63%Z with (Z.ones 6). change 511%Z with (Z.ones 9). rewrite !Z.land_ones by lia.
  change (2 ^ 15)%Z with 32768%Z. change (2 ^ 9)%Z with 512%Z. change (2 ^ 6)%Z with 64%Z.
  replace (code / 32768)%Z with 0%Z by lia. replace (code / 512 mod 64)%Z with (code / 512)%Z by lia.
  simpl (0 =? 0)%Z. cbv iota. destruct (Z.ltb_spec code 512) as [L|L].
  - replace (code / 512)%Z with 0%Z by lia. replace (code mod 512)%Z with code by lia. simpl (0 =? 0)%Z. cbv iota.
    rewrite Q2R_mult, Q2R_two_to, Q2R_division. simpl Qnum. simpl Qden.
    change (Z.max 1 0 - 40)%Z with (-30 - Z.of_nat 9)%Z. unfold Zminus. rewrite bpow_plus, two_inv. field.
  - destruct (Z.eqb_spec (code / 512) 0); [lia|]. rewrite Z.max_r by lia.
    rewrite Q2R_mult, Q2R_two_to, Q2R_plus, !Q2R_division. simpl Qnum. simpl Qden.
    replace (code / 512 - 40)%Z with (code / 512 - 31 + - Z.of_nat 9)%Z by lia.
    rewrite bpow_plus, two_inv, plus_IZR. field.
Qed.

Lemma decode_negative (code : Z) : (0 <= code < infinity_code)%Z -> decode (32768 + code) = Qopp (decode code).
Proof.
  unfold infinity_code. intro H. unfold decode. rewrite !Z.shiftr_div_pow2 by lia.
  change 63%Z with (Z.ones 6). change 511%Z with (Z.ones 9). rewrite !Z.land_ones by lia.
  change (2 ^ 15)%Z with 32768%Z. change (2 ^ 9)%Z with 512%Z. change (2 ^ 6)%Z with 64%Z.
  replace (code / 32768)%Z with 0%Z by lia. replace ((32768 + code) / 32768)%Z with 1%Z by lia.
  replace ((32768 + code) / 512 mod 64)%Z with (code / 512 mod 64)%Z by lia.
  replace ((32768 + code) mod 512)%Z with (code mod 512)%Z by lia. reflexivity.
Qed.

(** The value of every finite code is a number of the format, and at most the largest. *)
Theorem decode_in_format : forall code : Z, finite code ->
  gf16 (Q2R (decode code)) /\ Rabs (Q2R (decode code)) <= largest.
Proof.
  assert (P : forall code, (0 <= code < infinity_code)%Z ->
    gf16 (Q2R (decode code)) /\ Rabs (Q2R (decode code)) <= largest).
  { intros code H. rewrite (decode_value code H). unfold infinity_code in H.
    set (m := if (code <? 512)%Z then _ else _).
    assert (M : (0 <= m < 1024)%Z) by (unfold m; destruct (Z.ltb_spec code 512); lia). split; [apply in_format; lia|].
    rewrite Rabs_mult, (Rabs_right (two _)) by (apply Rle_ge, bpow_ge_0). rewrite <- abs_IZR.
    replace largest with (IZR 1023 * two (Z.of_nat 22)) by (rewrite two_pow; unfold largest; field).
    apply Rmult_le_compat; [apply IZR_le; lia | apply bpow_ge_0 | apply IZR_le; lia | apply bpow_le; simpl; lia]. }
  intros code [H|H]; [apply P; exact H|]. replace code with (32768 + (code - 32768))%Z by ring.
  rewrite decode_negative by lia. rewrite Q2R_opp, Rabs_Ropp. destruct (P (code - 32768)%Z ltac:(lia)).
  split; [apply generic_format_opp|]; assumption.
Qed.

Lemma decode_in_format_satisfiable : exists code : Z, finite code.
Proof. exists 40000%Z. right. unfold infinity_code. lia. Qed.
